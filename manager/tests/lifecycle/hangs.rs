//! Every step with a call of the driver that does not return: its caller is notified in time, the machine is in a known
//! state, the others go on, and it ends well whether the call returns after all or the process is ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::sleep;
use std::time::{Duration, Instant};

use retrovisor_manager::{EventKind, Lifecycle, ManagerError, PausedBy};
use retrovisor_scripted::{Action, Method, Script};

use crate::setup::{Daemon, wait};
use crate::sweep::{COPY, Case, Injection, NAME, OTHER, Place, Step, cases, must_recover};

/// How long a call may take to be made, and a machine to go on.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than a test takes.
const LONG: Duration = Duration::from_mins(10);

/// Waits until something is so; whether it is in time.
fn in_time(is_so: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !is_so() {
        if began.elapsed() > PATIENCE {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    true
}

/// The script that the call hangs in, as soon as it hangs.
fn hanging(daemon: &Daemon, case: Case, injection: Injection, is_done: impl Fn() -> bool) -> Option<Script> {
    let began = Instant::now();
    let launched = if case.step == Step::Branch { COPY } else { NAME };
    while began.elapsed() < PATIENCE {
        // The actor may make the call in between, or the step is done without it.
        let was_done = is_done();
        let script = match injection.place {
            Place::Driver => Some(daemon.host.calls().clone()),
            Place::Machine => daemon.host.find_script(NAME),
            Place::Launched => daemon.host.find_script(launched),
        };
        if let Some(script) = script.filter(|script| script.wait_hanging(Duration::ZERO).is_some()) {
            return Some(script);
        }
        if was_done {
            return None;
        }
        sleep(Duration::from_millis(1));
    }
    panic!("{case}, {injection:?}: the call is not made");
}

/// The others go on while the call hangs, and all machines can be listed.
fn others_go_on(daemon: &Daemon, case: Case, what: &str) {
    let began = Instant::now();
    let must = |done: Result<(), ManagerError>| done.unwrap_or_else(|error| panic!("{what}: {error}"));
    // A durable rollback has the right to add contents to the store until it is done (docs/locks.md).
    if !case.moves() {
        must(daemon.checkpoint(OTHER).map(drop));
        must(daemon.rollback(OTHER, daemon.newest(OTHER), true).map(drop));
    }
    must(daemon.pause(OTHER, PausedBy::User));
    must(daemon.resume(OTHER));
    for machine in daemon.manager.store().catalogue().machines().unwrap() {
        daemon.manager.status(&machine.name).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    assert!(began.elapsed() < PATIENCE, "{what}: the others wait");
}

fn check_one(daemon: &Daemon, case: Case, injection: Injection, is_killed: bool) -> bool {
    let what = format!("{case}, {injection:?} hangs");
    let before = case.prepare(daemon);
    injection.arm(daemon, Action::Hang);
    let hung = std::thread::scope(|scope| {
        let step = scope.spawn(|| case.execute(daemon));
        let Some(script) = hanging(daemon, case, injection, || step.is_finished()) else { return false };
        // A failed assertion ends the hanging thread, too.
        let checked = catch_unwind(AssertUnwindSafe(|| {
            others_go_on(daemon, case, &what);
            if daemon.manager.status(NAME).is_ok_and(|status| status.state.has_actor())
                && injection.place == Place::Machine
            {
                does_not_answer(daemon, injection.method, &what);
                assert!(in_time(|| step.is_finished()), "{what}: its caller is not notified");
                // `stop --force` has ended it itself.
                if is_killed && daemon.state(NAME) != Lifecycle::Gone {
                    wait(daemon.manager.stop(NAME, true)).unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(daemon.state(NAME), Lifecycle::Gone, "{what}");
                    assert!(!daemon.host.has_process(NAME), "{what}");
                }
                daemon.manager.set_call_wait(LONG);
            } else if case.state.is_some_and(|state| !state.has_actor()) {
                is_left_alone(daemon, &what);
            }
        }));
        daemon.manager.set_call_wait(LONG);
        script.release();
        let done = step.join().unwrap();
        if let Err(panic) = checked {
            std::panic::resume_unwind(panic);
        }
        if let Err(error) = done {
            let is_notified = matches!(error, ManagerError::Unanswered { state: Lifecycle::Unreachable, .. });
            assert!(is_notified || case.is_refused_step(), "{what}: {error}");
        }
        true
    });
    // What was begun is finished.
    daemon.settle(NAME);
    daemon.host.clear();
    if daemon.manager.status(NAME).is_ok() {
        assert_ne!(daemon.state(NAME), Lifecycle::Starting, "{what}");
        let has_process = daemon.host.has_process(NAME);
        assert_eq!(daemon.state(NAME) != Lifecycle::Gone, has_process, "{what}");
    }
    drop(before);
    must_recover(daemon, &what);
    hung
}

/// A machine without an actor refuses commands while a call hangs, and is not attached a second time.
fn is_left_alone(daemon: &Daemon, what: &str) {
    let began = Instant::now();
    let refused = daemon.checkpoint(NAME);
    assert!(refused.is_err(), "{what}: it is checkpointed");
    if daemon.state(NAME) == Lifecycle::Starting {
        let calls = || Method::ALL.map(|method| daemon.host.calls().calls(method));
        let before = calls();
        daemon.manager.retry_unreachable();
        assert_eq!(calls(), before, "{what}: it is attached a second time");
        assert_eq!(daemon.state(NAME), Lifecycle::Starting, "{what}");
    }
    assert!(began.elapsed() < PATIENCE, "{what}: commands wait for it");
}

/// A call that is overdue makes the machine unreachable, and commands are refused.
fn does_not_answer(daemon: &Daemon, method: Method, what: &str) {
    daemon.manager.set_call_wait(Duration::ZERO);
    let status = daemon.status(NAME);
    assert_eq!(status.state, Lifecycle::Unreachable, "{what}");
    assert!(status.reason.contains(&format!("{method:?}")), "{what}: {}", status.reason);
    for refused in [daemon.checkpoint(NAME).map(drop), daemon.manager.attach_again(NAME)] {
        assert!(matches!(refused, Err(ManagerError::State { .. })), "{what}: {refused:?}");
    }
    // It is not attached a second time.
    daemon.manager.retry_unreachable();
    assert_eq!(daemon.state(NAME), Lifecycle::Unreachable, "{what}");
}

/// Returns how many calls hung.
fn check(state: Option<Lifecycle>) -> usize {
    let mut hung = 0;
    for case in cases(state) {
        let injections = case.injections();
        let daemon = Daemon::new();
        daemon.manager.set_call_wait(LONG);
        daemon.run(OTHER).unwrap();
        for injection in injections.into_iter().filter(|injection| injection.is_first()) {
            // Every other one is ended instead of released.
            hung += usize::from(check_one(&daemon, case, injection, hung % 2 == 1));
        }
        daemon.check();
    }
    hung
}

#[test]
fn a_running_machine_survives_every_hang() {
    assert!(check(Some(Lifecycle::Running)) > 30);
}

#[test]
fn a_paused_machine_survives_every_hang() {
    assert!(check(Some(Lifecycle::Paused(PausedBy::User))) > 30);
}

#[test]
fn a_machine_that_cannot_run_survives_every_hang() {
    for state in [Lifecycle::PoweredOff, Lifecycle::Panicked, Lifecycle::Failed] {
        assert!(check(Some(state)) > 10);
    }
}

#[test]
fn a_machine_without_an_actor_survives_every_hang() {
    for state in [Lifecycle::Unreachable, Lifecycle::Detached] {
        assert!(check(Some(state)) > 5);
    }
}

#[test]
fn a_machine_without_a_process_survives_every_hang() {
    assert!(check(Some(Lifecycle::Gone)) > 20);
    assert!(check(None) > 10);
}

#[test]
fn a_call_that_hangs_is_reported_once_and_so_is_its_return() {
    let daemon = Daemon::new();
    daemon.run("web").unwrap();
    let mut events = daemon.manager.watch();
    let mut states = || {
        let mut states = Vec::new();
        while let Ok(event) = events.try_recv() {
            if let EventKind::State(state, _) = event.kind {
                states.push(state);
            }
        }
        states
    };
    let script = daemon.host.script("web");
    script.on(Method::CaptureState, 1, Action::Hang);
    std::thread::scope(|scope| {
        let step = scope.spawn(|| daemon.checkpoint("web"));
        assert_eq!(script.wait_hanging(PATIENCE), Some(Method::CaptureState));
        daemon.manager.set_call_wait(Duration::ZERO);
        let is_notified = in_time(|| step.is_finished());
        if !is_notified {
            script.release();
        }
        let error = step.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("CaptureState has not returned"), "{error}");
    });
    daemon.manager.retry_unreachable();
    assert_eq!(states(), [Lifecycle::Unreachable]);
    daemon.manager.set_call_wait(LONG);
    script.release();
    daemon.wait_for("web", Lifecycle::Running);
    daemon.manager.retry_unreachable();
    assert_eq!(states(), [Lifecycle::Running]);
    daemon.checkpoint("web").unwrap();
}

#[test]
fn a_machine_that_cannot_be_attached_in_time_delays_no_other_one() {
    let mut daemon = Daemon::new();
    for name in ["db", "web"] {
        daemon.run(name).unwrap();
    }
    daemon.host.calls().on(Method::Attach, 1, Action::Hang);
    let began = Instant::now();
    let said = daemon.restart_with(|manager| {
        manager.set_call_wait(Duration::from_millis(200));
        manager
    });
    assert!(began.elapsed() < PATIENCE, "the start waits for a machine");
    assert_eq!(said[0], "db is still being attached");
    assert_eq!(daemon.state("db"), Lifecycle::Starting);
    daemon.wait_for("web", Lifecycle::Running);
    daemon.manager.set_call_wait(LONG);
    daemon.checkpoint("web").unwrap();
    // It is not tried a second time meanwhile.
    daemon.manager.retry_unreachable();
    daemon.host.calls().release();
    daemon.wait_for("db", Lifecycle::Running);
    daemon.checkpoint("db").unwrap();
    daemon.check();
}
