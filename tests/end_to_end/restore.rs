//! Checkpoints taken under load come back bit for bit, in the same process and in new ones.

use std::sync::Arc;
use std::time::Duration;

use retrovisor_guest::{Machine as _, MemoryIo as _};
use retrovisor_machine::qemu::QemuMachine;
use retrovisor_snapshot::{Access, CheckpointRequest, Recorder, RollbackRequest, Store, image_hash};
use retrovisor_tests::{GuestImage, launch_config, wait_until};

/// Checkpoints, and processes they are restored into.
const CHECKPOINTS: usize = 20;

#[test]
fn twenty_checkpoints_under_load_come_back_in_new_processes() {
    let Some(image) = GuestImage::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("store"), Access::Create).unwrap());
    let runtime = dir.path().join("machine");
    let mut machine = QemuMachine::launch(&launch_config(&image, "g", &runtime, false)).unwrap();
    let log = machine.console_log().unwrap();
    let console = move || String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    wait_until("the guest's first tick", Duration::from_mins(1), || console().contains("tick "));

    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let mut taken = Vec::new();
    for _ in 0..CHECKPOINTS {
        std::thread::sleep(Duration::from_millis(200));
        taken.push(recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record);
    }
    assert!(taken.iter().skip(1).all(|record| record.dirty_pages > 0 && record.dirty_pages < 100_000));
    machine.quit();

    for (turn, record) in taken.iter().enumerate() {
        let mut machine = QemuMachine::launch(&launch_config(&image, "g", &runtime, true)).unwrap();
        let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
        recorder.restore(&mut machine, record.id, &RollbackRequest::default()).unwrap();
        let expected = store.image_hash(record.id).unwrap();
        assert_eq!(image_hash(machine.memory()).unwrap(), expected, "checkpoint {}", record.sequence);
        // Every fifth runs on and is asked how it feels; hashing shows the others to be the same.
        if turn % 5 == 4 {
            let ticks = console().matches("tick ").count();
            machine.resume().unwrap();
            wait_until("ticks of the restored guest", Duration::from_secs(30), || {
                console().matches("tick ").count() > ticks + 1
            });
            assert!(!console().contains("CORRUPT"), "{}", console());
        }
        machine.quit();
    }
}
