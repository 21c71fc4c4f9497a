//! What the guest's clocks say after a rollback, by the policy.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use retrovisor_guest::{ClockPolicy, Machine as _};
use retrovisor_machine::kvm::KvmMachine;
use retrovisor_snapshot::{Access, CheckpointRequest, Recorder, RollbackRequest, Store};

use crate::listener::Listener;
use crate::{guest, lab};

/// How long the guest runs on before it is taken back: longer than the slack.
const RUNS_ON: Duration = Duration::from_secs(11);
/// From one line of the guest to the next it takes a second, and in the lab everything takes its time.
const SLACK_MS: u64 = 5_000;

#[test]
fn clocks_stand_still_or_jump_to_now() {
    if !lab::boots_here() {
        return;
    }
    follow_the_policy(guest::launch(false));
}

#[test]
fn under_other_kernels_too() {
    if !lab::boots_here() || !lab::is_long("clocks under other kernels") {
        return;
    }
    for other in lab::other_kernels().into_iter().filter(|other| other.name.ends_with("-cloud")) {
        follow_the_policy(KvmMachine::launch(&guest::under(&other, "tell-time")).unwrap());
        println!("{}: its clocks follow the policy", other.name);
    }
}

fn follow_the_policy(mut machine: KvmMachine) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    let mut listener = Listener::default();
    listener.wait_tick(&mut machine);
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let (wall, monotonic) = listener.wait_clocks(&mut machine);
    // The guest's wall clock comes from the host's, up to what the way to the console takes.
    let behind = host_ms().abs_diff(wall);
    assert!(behind < SLACK_MS, "{behind} ms from the host's wall clock");
    let reported = Instant::now();
    let target = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record.id;
    let taken_after = reported.elapsed();
    for clock in [ClockPolicy::StandStill, ClockPolicy::JumpToNow] {
        let begun = Instant::now();
        std::thread::sleep(RUNS_ON);
        let request = RollbackRequest { clock, ..RollbackRequest::default() };
        let back = Instant::now();
        listener.back_by(&mut recorder, &mut machine, target, &request);
        let (wall_now, monotonic_now) = listener.wait_clocks(&mut machine);
        // What the guest ran before and after: on a busy host it takes its time to the next line.
        let ran = millis(taken_after + back.elapsed()) + SLACK_MS;
        let passed = millis(begun.elapsed());
        match clock {
            ClockPolicy::StandStill => {
                let gained = (wall_now.abs_diff(wall), monotonic_now.abs_diff(monotonic));
                assert!(gained.0 < ran && gained.1 < ran, "{gained:?} ms gained in {passed} ms, ran {ran}");
            }
            ClockPolicy::JumpToNow => {
                let behind = host_ms().abs_diff(wall_now);
                assert!(behind < SLACK_MS, "{behind} ms from the host's wall clock after {passed} ms");
            }
        }
        let console = String::from_utf8_lossy(&machine.console()).into_owned();
        assert!(!console.contains("clocksource: "), "a clock was found to be wrong:\n{console}");
        listener.assert_unnoticed(&machine);
    }
}

fn host_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

fn millis(of: Duration) -> u64 {
    u64::try_from(of.as_millis()).unwrap()
}
