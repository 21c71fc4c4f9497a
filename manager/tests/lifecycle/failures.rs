//! Every command with every call of the driver failing, in every state that has an actor.

use retrovisor_guest::RunState;
use retrovisor_manager::{Command, Lifecycle, ManagerError, PausedBy};
use retrovisor_scripted::{Action, Method};

use crate::setup::{Daemon, wait};

const NAME: &str = "web";

/// Commands that call the driver.
const COMMANDS: [&str; 9] =
    ["checkpoint", "rollback", "verified", "undo", "redo", "pause", "resume", "stop", "detach"];

fn execute(daemon: &Daemon, command: &str) -> Result<(), ManagerError> {
    match command {
        "checkpoint" => daemon.checkpoint(NAME).map(drop),
        "rollback" | "verified" => {
            daemon.rollback(NAME, daemon.newest(NAME), command == "verified").map(drop)
        }
        "undo" => daemon.ask(NAME, |reply| Command::Undo { verify_image: false, reply }).map(drop),
        "redo" => daemon.ask(NAME, |reply| Command::Redo { verify_image: true, reply }).map(drop),
        "pause" => daemon.pause(NAME, PausedBy::User),
        "resume" => daemon.resume(NAME),
        "stop" => daemon.stop(NAME, false),
        "detach" => wait(daemon.manager.detach(NAME)).map(drop),
        other => unreachable!("{other}"),
    }
}

/// After whatever failed, the machine is known with its state, and can be brought to run again.
fn must_recover(daemon: &mut Daemon, what: &str) {
    let script = daemon.host.pids().first().map(|_| daemon.host.script(NAME));
    if let Some(script) = &script {
        script.clear();
    }
    daemon.check();
    daemon.manager.retry_unreachable();
    if daemon.state(NAME) == Lifecycle::Detached {
        daemon.manager.attach_again(NAME).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    match daemon.state(NAME) {
        Lifecycle::Running | Lifecycle::Paused(_) => {}
        Lifecycle::PoweredOff | Lifecycle::Panicked | Lifecycle::Failed | Lifecycle::Gone => {
            let target = daemon.newest(NAME);
            daemon.rollback(NAME, target, true).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        state => panic!("{what}: {:?}", (state, daemon.status(NAME).reason)),
    }
    if daemon.state(NAME) != Lifecycle::Running {
        daemon.resume(NAME).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    assert_eq!(daemon.host.pids().len(), 1, "{what}");
    assert_eq!(daemon.host.script(NAME).run_state(), RunState::Running, "{what}");
    daemon.checkpoint(NAME).unwrap_or_else(|error| panic!("{what}: {error}"));
    daemon.stop(NAME, false).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(daemon.host.pids().is_empty(), "{what}");
    daemon.check();
}

fn check(state: Lifecycle, actions: &[Action]) {
    for command in COMMANDS {
        for method in Method::ALL {
            for nth in 1..=2 {
                for action in actions {
                    // A process that is gone does not come back.
                    if method == Method::RunState && *action != Action::Panic {
                        continue;
                    }
                    let mut daemon = Daemon::new();
                    daemon.bring_into(NAME, state);
                    daemon.host.script(NAME).on(method, nth, action.clone());
                    let what = format!("{command} when {state}, {method:?} {nth} {action:?}");
                    // Whether it fails or not: many of these calls are not made.
                    drop(execute(&daemon, command));
                    must_recover(&mut daemon, &what);
                }
            }
        }
    }
}

#[test]
fn a_running_machine_survives_every_failure() {
    check(Lifecycle::Running, &[Action::Fail, Action::FailAfter]);
}

#[test]
fn a_running_machine_survives_every_panic() {
    check(Lifecycle::Running, &[Action::Panic]);
}

#[test]
fn a_paused_machine_survives_every_failure() {
    check(Lifecycle::Paused(PausedBy::User), &[Action::Fail, Action::Panic]);
}

#[test]
fn a_machine_that_powered_off_survives_every_failure() {
    check(Lifecycle::PoweredOff, &[Action::FailAfter, Action::Panic]);
}

#[test]
fn a_half_written_machine_survives_every_failure() {
    check(Lifecycle::Failed, &[Action::Fail, Action::Panic]);
}
