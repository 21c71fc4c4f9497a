//! Every command in every state does what the table of `docs/lifecycle.md` says.

use std::ops::ControlFlow;

use retrovisor_manager::{
    Command, CommandKind, Fault, Lifecycle, MachineSpec, ManagerError, PausedBy, Rule, rule,
};

use crate::setup::{Daemon, MEMORY_BYTES, launch_spec, wait};

const NAME: &str = "web";

/// Executes a command as a user would.
fn execute(daemon: &Daemon, command: CommandKind) -> Result<(), ManagerError> {
    let manager = &daemon.manager;
    match command {
        CommandKind::Run => daemon.run(NAME),
        CommandKind::Attach => {
            daemon.host.refuse_attach(None);
            if daemon.state(NAME) == Lifecycle::Gone {
                let socket = daemon.dir.path().join("foreign");
                daemon.host.start(NAME, &socket, MEMORY_BYTES);
                return manager.attach(NAME, &MachineSpec::attached(socket, 0));
            }
            manager.attach_again(NAME)
        }
        CommandKind::Checkpoint => daemon.checkpoint(NAME).map(drop),
        CommandKind::Audit => daemon.ask(NAME, |reply| Command::Audit { reply }).map(drop),
        CommandKind::Rollback => {
            let target = daemon.newest(NAME);
            daemon.rollback(NAME, target, true).map(drop)
        }
        CommandKind::Undo => daemon.ask(NAME, |reply| Command::Undo { verify_image: true, reply }).map(drop),
        CommandKind::Redo => daemon.ask(NAME, |reply| Command::Redo { verify_image: true, reply }).map(drop),
        CommandKind::Pause => daemon.pause(NAME, PausedBy::User),
        CommandKind::Resume => daemon.resume(NAME),
        CommandKind::Stop => daemon.stop(NAME, false),
        CommandKind::ForceStop => daemon.stop(NAME, true),
        CommandKind::Inject => {
            let arguments = [("syscall", "getppid"), ("to", "getuid")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
            let fault = Fault::Memory { name: "syscall-redirect".to_owned(), arguments: arguments.into() };
            daemon.ask(NAME, |reply| Command::Inject { fault, reply }).map(drop)
        }
        CommandKind::InjectCommand => {
            let fault = Fault::ConsoleCommand { line: "date".to_owned() };
            daemon.ask(NAME, |reply| Command::Inject { fault, reply }).map(drop)
        }
        CommandKind::Set => wait(manager.set_interval(NAME, 60_000)),
        CommandKind::Detach => wait(manager.detach(NAME)).map(drop),
        CommandKind::Remove => manager.remove(NAME, &mut |_| ControlFlow::Continue(())).map(drop),
    }
}

/// Whether the state of the machine is why a command was refused.
fn is_refused_by_state(error: &ManagerError) -> bool {
    matches!(error, ManagerError::State { .. } | ManagerError::Gone { .. } | ManagerError::Exists { .. })
}

/// What a guest without a kernel and without a shell cannot take, in a state that allows it.
fn lacks_a_kernel(command: CommandKind, error: &ManagerError) -> bool {
    match command {
        CommandKind::Inject => matches!(error, ManagerError::Fault(_)),
        CommandKind::InjectCommand => matches!(error, ManagerError::Refused { .. }),
        _ => false,
    }
}

fn check_cell(state: Lifecycle, command: CommandKind) {
    let daemon = Daemon::new();
    daemon.bring_into(NAME, state);
    if command == CommandKind::Redo && rule(state, command) != Rule::Refused {
        // There is something to redo after an undo.
        execute(&daemon, CommandKind::Undo).unwrap();
    }
    let done = execute(&daemon, command);
    let cell = format!("`{command}` of a machine that is {state}");
    let expected = match rule(state, command) {
        Rule::Stays => state,
        Rule::Leads(to) => to,
        Rule::LeadsToDesired => Lifecycle::Running,
        Rule::Removes => {
            done.expect(&cell);
            assert!(daemon.manager.status(NAME).is_err(), "{cell}");
            assert!(daemon.manager.store().catalogue().machines().unwrap().is_empty(), "{cell}");
            daemon.check();
            return;
        }
        Rule::Refused => {
            let error = done.expect_err(&cell);
            assert!(is_refused_by_state(&error), "{cell}: {error}");
            assert_eq!(daemon.state(NAME), state, "{cell}");
            daemon.check();
            return;
        }
    };
    if let Err(error) = done {
        assert!(lacks_a_kernel(command, &error), "{cell}: {error}");
    }
    assert_eq!(daemon.state(NAME), expected, "{cell}");
    if expected == Lifecycle::Gone {
        assert!(daemon.host.pids().is_empty(), "{cell} leaves a process");
    } else {
        assert_eq!(daemon.host.pids().len(), 1, "{cell}");
    }
    daemon.check();
}

#[test]
fn every_command_in_every_state_follows_the_table() {
    for state in Lifecycle::ALL.into_iter().filter(|state| *state != Lifecycle::Starting) {
        for command in CommandKind::ALL {
            check_cell(state, command);
        }
    }
}

#[test]
fn a_machine_that_is_being_started_refuses_every_command() {
    let daemon = Daemon::new();
    daemon.run(NAME).unwrap();
    daemon.stop(NAME, false).unwrap();
    daemon.host.hold_launch(true);
    std::thread::scope(|scope| {
        let started = scope.spawn(|| daemon.manager.run(NAME, &MachineSpec::launched(launch_spec(), 0)));
        daemon.wait_for(NAME, Lifecycle::Starting);
        for command in CommandKind::ALL {
            // Its process is not there yet, so that there is nothing to attach to.
            if command == CommandKind::Attach {
                continue;
            }
            let error = execute(&daemon, command).unwrap_err();
            assert!(is_refused_by_state(&error), "{command}: {error}");
        }
        daemon.host.hold_launch(false);
        started.join().unwrap().unwrap();
    });
    assert_eq!(daemon.state(NAME), Lifecycle::Running);
    daemon.check();
}
