use std::sync::Arc;
use std::time::Duration;

use retrovisor_guest::Machine as _;
use retrovisor_snapshot::{Access, CheckpointRequest, Recorder, RecorderSettings, RollbackRequest, Store};

use crate::guest::{self, Listener};
use crate::lab;

/// Of a short run and of a long one (`RETROVISOR_LAB_LONG`).
struct Scale {
    checkpoints: usize,
    rollbacks: usize,
}

fn scale() -> Scale {
    if std::env::var_os("RETROVISOR_LAB_LONG").is_some() {
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
    let settings = RecorderSettings { kept_disk_states_max: 8, ..RecorderSettings::default() };
    let mut recorder = Recorder::with_settings(Arc::clone(&store), id, settings).unwrap();
    let mut taken = Vec::new();
    for _ in 0..scale.checkpoints {
        let report = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
        taken.push(report.record.id);
        std::thread::sleep(Duration::from_millis(50));
    }
    listener.assert_unnoticed(&machine);

    let kept = machine.kept_disks().unwrap().len();
    assert!((1..=16).contains(&kept) && kept < taken.len(), "{kept} disk states are kept");

    // Hops of a stride that visits early and late ones in turn.
    for hop in 0..scale.rollbacks {
        let target = taken[hop * 17 % taken.len()];
        recorder.rollback(&mut machine, target, &RollbackRequest::default()).unwrap();
        listener.cut(&machine);
        listener.wait_tick(&mut machine);
        listener.assert_unnoticed(&machine);
    }

    machine.pause().unwrap();
    let last = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record.id;
    let tick = listener.ticks(&machine).last().unwrap().0;
    drop(machine);
    let mut machine = guest::launch(true);
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    recorder.restore(&mut machine, last, &RollbackRequest::default()).unwrap();
    machine.resume().unwrap();
    // It says the rest of a line first.
    let mut listener = Listener::default();
    listener.cut(&machine);
    let next = listener.wait_tick(&mut machine);
    assert!(next > tick && next <= tick + 20, "tick {next} after {tick}");
    listener.assert_unnoticed(&machine);
}
