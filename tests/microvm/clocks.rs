//! What the guest's clocks say after a rollback, by the policy.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use retrovisor_guest::{ClockPolicy, Machine as _};
use retrovisor_snapshot::{Access, CheckpointRequest, Recorder, RollbackRequest, Store};

use crate::guest::{self, Listener};
use crate::lab;

/// How long the guest runs on before it is taken back.
const RUNS_ON: Duration = Duration::from_secs(11);
/// From one line of the guest to the next it takes a second, and in the lab everything takes its time.
const SLACK_MS: u64 = 5_000;

#[test]
fn clocks_stand_still_or_jump_to_now() {
    if !lab::boots_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    let mut machine = guest::launch(false);
    let mut listener = Listener::default();
    listener.wait_tick(&mut machine);
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let (wall, monotonic) = listener.wait_clocks(&mut machine);
    // The guest's wall clock comes from the host's, up to what the way to the console takes.
    let behind = host_ms().abs_diff(wall);
    assert!(behind < SLACK_MS, "{behind} ms from the host's wall clock");
    let target = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record.id;
    for clock in [ClockPolicy::StandStill, ClockPolicy::JumpToNow] {
        let begun = Instant::now();
        std::thread::sleep(RUNS_ON);
        let request = RollbackRequest { clock, ..RollbackRequest::default() };
        recorder.rollback(&mut machine, target, &request).unwrap();
        listener.cut(&machine);
        let (wall_now, monotonic_now) = listener.wait_clocks(&mut machine);
        let passed = u64::try_from(begun.elapsed().as_millis()).unwrap();
        assert!(passed > 2 * SLACK_MS);
        match clock {
            ClockPolicy::StandStill => {
                let gained = (wall_now.abs_diff(wall), monotonic_now.abs_diff(monotonic));
                assert!(gained.0 < SLACK_MS && gained.1 < SLACK_MS, "{gained:?} ms gained in {passed} ms");
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
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}
