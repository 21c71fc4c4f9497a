//! Every command in every state does what the table of `docs/lifecycle.md` says.

use retrovisor_manager::{CommandKind, Lifecycle, MachineSpec, ManagerError, Rule, rule};

use crate::commands::execute;
use crate::setup::{Daemon, launch_spec};

const NAME: &str = "web";

/// Whether the state of the machine is why a command was refused.
fn is_refused_by_state(error: &ManagerError) -> bool {
    matches!(error, ManagerError::State { .. } | ManagerError::Gone { .. } | ManagerError::Exists { .. })
}

/// What a guest without a shell cannot take, in a state that allows it.
fn lacks_a_shell(command: CommandKind, error: &ManagerError) -> bool {
    command == CommandKind::InjectCommand && matches!(error, ManagerError::Refused { .. })
}

fn check_cell(state: Lifecycle, command: CommandKind) {
    let daemon = Daemon::new();
    daemon.bring_into(NAME, state);
    if command == CommandKind::Redo && rule(state, command) != Rule::Refused {
        // There is something to redo after an undo.
        execute(&daemon, NAME, CommandKind::Undo).unwrap();
    }
    let done = execute(&daemon, NAME, command);
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
        assert!(lacks_a_shell(command, &error), "{cell}: {error}");
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
            let error = execute(&daemon, NAME, command).unwrap_err();
            assert!(is_refused_by_state(&error), "{command}: {error}");
        }
        daemon.host.hold_launch(false);
        started.join().unwrap().unwrap();
    });
    assert_eq!(daemon.state(NAME), Lifecycle::Running);
    daemon.check();
}
