//! What must come out right in longer histories: restarts, other clients, failures.

use std::panic::{AssertUnwindSafe, catch_unwind};

use retrovisor_guest::RunState;
use retrovisor_manager::{Command, EventKind, Lifecycle, MachineSpec, ManagerError, PausedBy};
use retrovisor_scripted::{Action, Method};

use crate::setup::{Daemon, MEMORY_BYTES, launch_spec, wait};

#[test]
fn who_paused_a_machine_survives_a_restart() {
    for by in [PausedBy::User, PausedBy::Policy, PausedBy::DiskError, PausedBy::Other] {
        let mut daemon = Daemon::new();
        daemon.bring_into("web", Lifecycle::Paused(by));
        assert_eq!(daemon.restart(), ["web still runs and is managed again"]);
        assert_eq!(daemon.state("web"), Lifecycle::Paused(by));
        assert_eq!(daemon.host.script("web").run_state(), RunState::Paused);
        daemon.resume("web").unwrap();
        daemon.restart();
        assert_eq!(daemon.state("web"), Lifecycle::Running);
        daemon.check();
    }
}

#[test]
fn a_pause_that_a_dead_daemon_left_ends_with_the_next_one() {
    let mut daemon = Daemon::new();
    daemon.run("web").unwrap();
    let script = daemon.host.script("web");
    daemon.manager.detach_all();
    script.enter(RunState::Paused);
    daemon.restart();
    assert_eq!((daemon.state("web"), script.run_state()), (Lifecycle::Running, RunState::Running));
}

#[test]
fn what_is_attached_paused_stays_paused() {
    let daemon = Daemon::new();
    let socket = daemon.dir.path().join("q");
    daemon.host.start("db", &socket, MEMORY_BYTES);
    daemon.host.script("db").enter(RunState::Paused);
    daemon.manager.attach("db", &MachineSpec::attached(socket, 0)).unwrap();
    assert_eq!(daemon.state("db"), Lifecycle::Paused(PausedBy::Other));
    assert_eq!(daemon.host.script("db").run_state(), RunState::Paused);
}

#[test]
fn a_guest_that_powered_off_goes_back_in_place() {
    for state in [Lifecycle::PoweredOff, Lifecycle::Panicked] {
        let daemon = Daemon::new();
        daemon.bring_into("web", state);
        let before = daemon.host.pids();
        let rollback = daemon.rollback("web", daemon.newest("web"), true).unwrap();
        assert_eq!((rollback.new_process, rollback.image_matches), (false, Some(true)));
        assert_eq!((daemon.state("web"), daemon.host.pids()), (Lifecycle::Running, before));
        daemon.check();
    }
}

#[test]
fn a_stop_whose_checkpoint_fails_keeps_the_machine() {
    let daemon = Daemon::new();
    daemon.run("web").unwrap();
    let script = daemon.host.script("web");
    script.on(Method::CaptureState, 1, Action::Fail);
    let error = daemon.stop("web", false).unwrap_err();
    assert!(matches!(error, ManagerError::NotStopped { .. }), "{error}");
    assert_eq!((daemon.state("web"), script.run_state()), (Lifecycle::Running, RunState::Running));
    script.on(Method::CaptureState, 1, Action::Fail);
    daemon.stop("web", true).unwrap();
    assert_eq!((daemon.state("web"), daemon.host.pids().len()), (Lifecycle::Gone, 0));
    assert_eq!(daemon.status("web").reason, "it was stopped");
}

#[test]
fn an_attach_that_fails_leaves_nothing() {
    let daemon = Daemon::new();
    let socket = daemon.dir.path().join("q");
    let pid = daemon.host.start("db", &socket, MEMORY_BYTES);
    let script = daemon.host.script("db");
    let spec = MachineSpec::attached(socket, 0);
    for method in [Method::CaptureState, Method::TakeDirty, Method::Pause] {
        script.on(method, 1, Action::Fail);
        daemon.manager.attach("db", &spec).unwrap_err();
        assert!(daemon.manager.store().catalogue().machines().unwrap().is_empty(), "{method:?}");
        assert_eq!((daemon.host.pids(), script.run_state()), (vec![pid], RunState::Running), "{method:?}");
    }
    daemon.manager.attach("db", &spec).unwrap();
    daemon.check();
}

#[test]
fn a_start_that_fails_leaves_no_process_and_no_name() {
    let daemon = Daemon::new();
    let spec = MachineSpec::launched(launch_spec(), 0);
    let refused: Result<(), _> = daemon
        .manager
        .run_when_ready("web", &spec, |_| Err(ManagerError::Invalid("it did not boot".to_owned())));
    refused.unwrap_err();
    assert!(daemon.host.pids().is_empty());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        daemon.manager.run_when_ready::<()>("web", &spec, |_| panic!("a caller's mistake"))
    }));
    panicked.unwrap_err();
    assert!(daemon.host.pids().is_empty(), "the guard ended it");
    daemon.run("web").unwrap();
    daemon.check();
}

#[test]
fn a_machine_that_another_client_holds_is_reported_and_attached_later() {
    let mut daemon = Daemon::new();
    daemon.run("web").unwrap();
    daemon.host.refuse_attach(Some("another client is connected"));
    let said = daemon.restart();
    assert!(said[0].starts_with("web still runs, but cannot be attached: another client"), "{said:?}");
    let status = daemon.status("web");
    assert_eq!(status.state, Lifecycle::Unreachable);
    assert!(status.reason.contains("another client"), "{}", status.reason);
    daemon.manager.retry_unreachable();
    assert_eq!(daemon.state("web"), Lifecycle::Unreachable);
    daemon.host.refuse_attach(None);
    daemon.manager.retry_unreachable();
    assert_eq!(daemon.state("web"), Lifecycle::Running);
    daemon.check();
}

#[test]
fn another_process_at_the_socket_is_not_taken_for_the_machine() {
    let mut daemon = Daemon::new();
    let socket = daemon.dir.path().join("q");
    daemon.host.start("db", &socket, MEMORY_BYTES);
    daemon.manager.attach("db", &MachineSpec::attached(socket.clone(), 0)).unwrap();
    let before = daemon.newest("db");
    daemon.manager.detach_all();
    daemon.host.kill_by_name("db");
    daemon.host.start("db", &socket, MEMORY_BYTES);
    assert!(daemon.restart().is_empty());
    assert_eq!((daemon.state("db"), daemon.newest("db")), (Lifecycle::Gone, before));
}

#[test]
fn one_process_is_one_machine() {
    let daemon = Daemon::new();
    let socket = daemon.dir.path().join("q");
    daemon.host.start("db", &socket, MEMORY_BYTES);
    daemon.manager.attach("db", &MachineSpec::attached(socket.clone(), 0)).unwrap();
    let error = daemon.manager.attach("other", &MachineSpec::attached(socket, 0)).unwrap_err();
    assert!(matches!(&error, ManagerError::Managed { machine, .. } if machine == "db"), "{error}");
    assert_eq!(daemon.state("db"), Lifecycle::Running);
}

#[test]
fn a_history_of_another_shape_is_refused_before_anything_is_started() {
    let daemon = Daemon::new();
    daemon.run("web").unwrap();
    daemon.stop("web", false).unwrap();
    let before = daemon.manager.store().catalogue().machine("web").unwrap();
    for other in [
        retrovisor_guest::LaunchSpec { vcpus: 2, ..launch_spec() },
        retrovisor_guest::LaunchSpec { memory_bytes: 2 * MEMORY_BYTES, ..launch_spec() },
    ] {
        let error = daemon.manager.run("web", &MachineSpec::launched(other, 0)).unwrap_err();
        assert!(matches!(error, ManagerError::Shape { .. }), "{error}");
    }
    assert!(daemon.host.pids().is_empty());
    assert_eq!(daemon.manager.store().catalogue().machine("web").unwrap(), before);
    daemon.run("web").unwrap();
}

#[test]
fn memory_that_is_wrong_after_a_rollback_does_not_run() {
    let daemon = Daemon::new();
    daemon.run("web").unwrap();
    let first = daemon.checkpoint("web").unwrap();
    let script = daemon.host.script("web");
    let mut events = daemon.manager.watch();
    daemon.host.corrupt_next_restore("web");
    let error = daemon.rollback("web", first.id, true).unwrap_err();
    assert!(matches!(error, ManagerError::ImageMismatch { is_reverted: true, .. }), "{error}");
    assert_eq!((daemon.state("web"), script.run_state()), (Lifecycle::Running, RunState::Running));
    let mut incidents = 0;
    while let Ok(event) = events.try_recv() {
        incidents += u32::from(matches!(event.kind, EventKind::Incident(_)));
    }
    assert_eq!(incidents, 1);
    daemon.check();
}

#[test]
fn a_panic_in_one_machine_leaves_the_others_alone() {
    let daemon = Daemon::new();
    daemon.run("web").unwrap();
    daemon.run("db").unwrap();
    daemon.host.script("web").on(Method::CaptureState, 1, Action::Panic);
    let error = daemon.checkpoint("web").unwrap_err();
    assert!(matches!(error, ManagerError::Unanswered { .. }), "{error}");
    daemon.wait_for("web", Lifecycle::Unreachable);
    assert!(daemon.status("web").reason.contains("internal error"), "{}", daemon.status("web").reason);
    daemon.checkpoint("db").unwrap();
    // It is attached again, with all that it has.
    daemon.manager.retry_unreachable();
    assert_eq!(daemon.state("web"), Lifecycle::Running);
    daemon.checkpoint("web").unwrap();
    daemon.check();
}

#[test]
fn a_rollback_that_failed_is_not_repeated_on_the_next_process() {
    let mut daemon = Daemon::new();
    daemon.run("web").unwrap();
    let first = daemon.checkpoint("web").unwrap();
    daemon.host.kill_by_name("web");
    daemon.observe("web");
    daemon.wait_for("web", Lifecycle::Gone);
    daemon.host.on_next_launched(Method::ApplyState, 1, Action::Fail);
    daemon.rollback("web", first.id, false).unwrap_err();
    assert!(daemon.host.pids().is_empty(), "a restore that fails leaves no process");
    daemon.check();
    daemon.run("web").unwrap();
    let newest = daemon.newest("web");
    daemon.restart();
    let catalogue = daemon.manager.store().catalogue();
    let position = catalogue.position(catalogue.machine("web").unwrap().id).unwrap().unwrap();
    assert!(position.checkpoint >= newest, "the live guest was taken back");
    assert_eq!(daemon.state("web"), Lifecycle::Running);
}

#[test]
fn a_half_written_machine_stays_managed_and_can_be_taken_back() {
    let mut daemon = Daemon::new();
    daemon.bring_into("web", Lifecycle::Failed);
    // The next daemon moves it to its target.
    daemon.restart();
    assert_eq!(daemon.state("web"), Lifecycle::Running);
    daemon.check();
}

#[test]
fn a_detached_machine_is_left_alone_until_it_is_attached_again() {
    let mut daemon = Daemon::new();
    daemon.bring_into("web", Lifecycle::Detached);
    assert!(daemon.restart().is_empty());
    assert_eq!(daemon.state("web"), Lifecycle::Detached);
    daemon.manager.attach_again("web").unwrap();
    daemon.restart();
    assert_eq!(daemon.state("web"), Lifecycle::Running);
    daemon.host.kill_by_name("web");
    daemon.observe("web");
    daemon.wait_for("web", Lifecycle::Gone);
}

#[test]
fn the_interval_can_be_changed_in_every_state() {
    let mut daemon = Daemon::new();
    daemon.run("web").unwrap();
    wait(daemon.manager.set_interval("web", 20)).unwrap();
    let before = daemon.newest("web");
    let began = std::time::Instant::now();
    while daemon.newest("web") == before {
        assert!(began.elapsed().as_secs() < 20, "no checkpoint comes by itself");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    daemon.stop("web", false).unwrap();
    wait(daemon.manager.set_interval("web", 0)).unwrap();
    daemon.restart();
    assert_eq!(daemon.status("web").every_ms, 0);
    drop(daemon.ask("web", |reply| Command::Resume { reply }).unwrap_err());
}
