use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use retrovisor_guest::{DiskIo as _, Machine as _};
use retrovisor_machine::kvm::{KvmConfig, Limits, RemoteConfig, RemoteMachine};
use retrovisor_snapshot::{
    Access, CheckpointId, CheckpointRequest, MachineId, Recorder, RecorderSettings, RollbackRequest, Store,
};
use retrovisor_tests::command_path;

use crate::guest::{self, Heard};
use crate::lab;
use crate::listener::Listener;

/// Of a short run and of a long one (`RETROVISOR_LAB_LONG`).
struct Scale {
    checkpoints: usize,
    rollbacks: usize,
}

fn scale() -> Scale {
    if lab::is_long("1,200 checkpoints and 100 rollbacks") {
        Scale { checkpoints: 1200, rollbacks: 100 }
    } else {
        Scale { checkpoints: 40, rollbacks: 8 }
    }
}

#[test]
fn a_linux_guest_goes_back_and_forth_and_into_a_new_machine_and_notices_nothing() {
    if !lab::boots_here() {
        return;
    }
    let scale = scale();
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    let mut machine = guest::launch(false);
    let mut listener = Listener::default();
    listener.wait_tick(&mut machine);
    let console = String::from_utf8_lossy(&machine.console()).into_owned();
    assert!(console.contains("files in /data"), "the guest's files are not on its disk:\n{console}");
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    // Of most checkpoints the disk is in the store alone.
    let settings = RecorderSettings { retained_disk_states_max: 8, ..RecorderSettings::default() };
    let mut recorder = Recorder::with_settings(Arc::clone(&store), id, settings).unwrap();
    let mut taken = Vec::new();
    let began = Instant::now();
    for _ in 0..scale.checkpoints {
        let report = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
        taken.push(report.record.id);
        std::thread::sleep(Duration::from_millis(50));
    }
    listener.assert_unnoticed(&machine);

    let kept = machine.retained_disks().unwrap().len();
    assert!((1..=16).contains(&kept) && kept < taken.len(), "{kept} disk states are kept");

    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    println!(
        "{} checkpoints in {:.0} s; rollbacks chosen by seed {seed}",
        taken.len(),
        began.elapsed().as_secs_f64()
    );
    for target in chosen(&taken, scale.rollbacks, seed) {
        listener.back(&mut recorder, &mut machine, target);
        listener.wait_tick(&mut machine);
        listener.assert_unnoticed(&machine);
    }

    machine.pause().unwrap();
    let last = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record.id;
    let tick = listener.ticks(&machine).last().unwrap().0;
    drop(machine);
    goes_on(guest::launch(true), Arc::clone(&store), id, last, tick);

    // The same in a process of its own.
    let config = RemoteConfig {
        machine: KvmConfig { paused: true, ..guest::config("linux", "tell-time") },
        program: command_path(),
        arguments: vec!["machine-worker".into()],
        runtime_dir: dir.path().join("worker"),
        awaits_state: true,
        detached: false,
        limits: Limits::of("linux"),
    };
    let machine = RemoteMachine::launch(&config).unwrap();
    assert_ne!(machine.pid(), i32::try_from(std::process::id()).unwrap());
    println!("in the worker: {}", machine.confinement().done.join(", "));
    goes_on(machine, store, id, last, tick);
}

/// Puts a checkpoint into a new machine, which must go on after the tick that was said last, and notice nothing.
fn goes_on(mut machine: impl Heard, store: Arc<Store>, id: MachineId, from: CheckpointId, tick: u64) {
    let mut recorder = Recorder::new(store, id).unwrap();
    recorder.restore(&mut machine, from, &RollbackRequest::default()).unwrap();
    machine.resume().unwrap();
    // It says the rest of a line first.
    let mut listener = Listener::default();
    listener.cut(&machine);
    let next = listener.wait_tick(&mut machine);
    assert!(next > tick && next <= tick + 20, "tick {next} after {tick}");
    listener.wait_tick(&mut machine);
    listener.assert_unnoticed(&machine);
}

/// As many of them, at random (splitmix64).
fn chosen<T: Copy>(of: &[T], count: usize, seed: u64) -> Vec<T> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    (0..count).map(|_| of[usize::try_from(next() % of.len() as u64).unwrap()]).collect()
}
