//! Every step in every state, with every call of the driver that it makes failing: at once, after its work, by a panic.

use retrovisor_manager::{CommandKind, Lifecycle, PausedBy};
use retrovisor_scripted::{Action, Method};

use crate::commands::execute;
use crate::setup::Daemon;
use crate::sweep::{Case, NAME, OTHER, cases, must_recover};

/// What a step that fails may leave of the state, beside the state itself.
fn may_lead_to(case: Case, state: Lifecycle, method: Method, action: &Action, now: Lifecycle) -> bool {
    // A panic ends the management, and a machine that says that it is gone does not answer.
    let is_lost = *action == Action::Panic || method == Method::RunState;
    match now {
        Lifecycle::Unreachable | Lifecycle::Gone | Lifecycle::Detached => is_lost,
        Lifecycle::Failed => case.moves() || state == Lifecycle::Failed,
        // A guest that cannot be resumed stays paused.
        Lifecycle::Paused(_) => method == Method::Resume,
        _ => false,
    }
}

/// Returns how many calls failed.
fn check(state: Option<Lifecycle>, actions: &[Action]) -> usize {
    let mut failures = 0;
    for case in cases(state) {
        let injections = case.injections();
        let daemon = Daemon::new();
        daemon.run(OTHER).unwrap();
        for injection in injections {
            for action in actions {
                let what = format!("{case}, {injection:?} {action:?}");
                let before = case.prepare(&daemon);
                injection.arm(&daemon, action.clone());
                // Whether it fails or not: not every failure of a call is one of the step.
                let done = case.try_execute(&daemon);
                let failed = !matches!(done, Ok(Ok(())));
                failures += usize::from(failed);
                case.check(&daemon, &before, failed, &what);
                if let Some(state) = state.filter(|_| failed) {
                    let now = daemon.state(NAME);
                    let is_known = now == state || may_lead_to(case, state, injection.method, action, now);
                    assert!(is_known, "{what}: it is {now}: {done:?}");
                }
                must_recover(&daemon, &what);
            }
        }
        daemon.check();
    }
    failures
}

#[test]
fn a_running_machine_survives_every_failure() {
    assert!(check(Some(Lifecycle::Running), &[Action::Fail, Action::FailAfter]) > 50);
}

#[test]
fn a_running_machine_survives_every_panic() {
    assert!(check(Some(Lifecycle::Running), &[Action::Panic]) > 50);
}

#[test]
fn a_paused_machine_survives_every_failure() {
    let actions = [Action::Fail, Action::FailAfter, Action::Panic];
    assert!(check(Some(Lifecycle::Paused(PausedBy::User)), &actions) > 50);
}

#[test]
fn a_machine_whose_guest_ended_survives_every_failure() {
    for state in [Lifecycle::PoweredOff, Lifecycle::Panicked] {
        assert!(check(Some(state), &[Action::Fail, Action::FailAfter, Action::Panic]) > 20);
    }
}

#[test]
fn a_half_written_machine_survives_every_failure() {
    assert!(check(Some(Lifecycle::Failed), &[Action::Fail, Action::FailAfter, Action::Panic]) > 20);
}

#[test]
fn a_machine_without_an_actor_survives_every_failure() {
    for state in [Lifecycle::Unreachable, Lifecycle::Detached] {
        assert!(check(Some(state), &[Action::Fail, Action::FailAfter, Action::Panic]) > 5);
    }
}

#[test]
fn a_machine_without_a_process_survives_every_failure() {
    assert!(check(Some(Lifecycle::Gone), &[Action::Fail, Action::FailAfter, Action::Panic]) > 50);
}

#[test]
fn a_new_name_leaves_nothing_after_every_failure() {
    assert!(check(None, &[Action::Fail, Action::FailAfter, Action::Panic]) > 30);
}

#[test]
fn a_fault_that_can_neither_be_applied_nor_reverted_leads_to_failed() {
    for state in [Lifecycle::Running, Lifecycle::Paused(PausedBy::User)] {
        let daemon = Daemon::new();
        daemon.bring_into(NAME, state);
        let script = daemon.host.script(NAME);
        script.on(Method::ApplyState, 1, Action::FailAfter);
        script.on(Method::ApplyState, 2, Action::FailAfter);
        let error = execute(&daemon, NAME, CommandKind::Inject).unwrap_err();
        assert!(error.to_string().contains("does not accept its state any more"), "{error}");
        assert_eq!(daemon.state(NAME), Lifecycle::Failed);
        execute(&daemon, NAME, CommandKind::Rollback).unwrap();
        assert_eq!(daemon.state(NAME) == Lifecycle::Running, state == Lifecycle::Running);
        daemon.check();
    }
}
