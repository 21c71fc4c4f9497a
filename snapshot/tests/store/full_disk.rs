//! A full disk stops checkpointing with a clear error, loses nothing, and the guest runs on.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use retrovisor_guest::{MemoryLayout, PAGE_SIZE};
use retrovisor_snapshot::{Access, CheckpointRequest, Error, Recorder, RollbackRequest, Store, image_hash};

use crate::toy::Toy;

/// A file system of its own, unmounted at the end.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(at: &'a Path, size: &str) -> Option<Self> {
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .output();
        done.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_store_on_a_medium_that_cannot_be_written_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::tmpfs(dir.path(), "8m") else {
        eprintln!("SKIPPED: a small tmpfs cannot be mounted here (needs root)");
        return;
    };
    let at = dir.path().join("store");
    let mut toy = Toy::new(&MemoryLayout::flat(16 * PAGE_SIZE as u64).unwrap());
    toy.scribble(3, 3);
    let store = Arc::new(Store::open(&at, Access::Create).unwrap());
    let machine = store.catalogue().add_machine(&toy.identity).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    let record = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap().record;
    drop((recorder, store));
    let fixed = Command::new("mount").args(["-o", "remount,ro"]).arg(dir.path()).status().unwrap();
    assert!(fixed.success());
    let store = Arc::new(Store::open(&at, Access::ReadOnly).unwrap());
    assert_eq!(store.image_hash(record.id).unwrap(), image_hash(&toy).unwrap());
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn a_full_disk_loses_nothing_and_the_guest_runs_on() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::tmpfs(dir.path(), "3m") else {
        eprintln!("SKIPPED: a small tmpfs cannot be mounted here (needs root)");
        return;
    };
    let ballast = dir.path().join("ballast");
    let at = dir.path().join("store");
    let store = Arc::new(Store::open(&at, Access::Create).unwrap());
    let mut toy = Toy::new(&MemoryLayout::flat(256 * PAGE_SIZE as u64).unwrap());
    let machine = store.catalogue().add_machine(&toy.identity).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    let mut kept = Vec::new();
    let mut failures = 0;
    for round in 0..400_u64 {
        for page in 0..20 {
            toy.scribble(usize::try_from((round * 7 + page * 11) % 256).unwrap(), round * 100 + page);
        }
        match recorder.checkpoint(&mut toy, &CheckpointRequest::default()) {
            Ok(report) => kept.push((report.record.id, image_hash(&toy).unwrap())),
            Err(error) => {
                assert!(matches!(error, Error::Full { .. }), "{error:?}");
                assert!(error.to_string().contains("Free some space"), "{error}");
                failures += 1;
                // A rollback fails as well: the current state could not be stored.
                let before = toy.image.clone();
                let refused = recorder.rollback(&mut toy, kept[0].0, &RollbackRequest::default());
                assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
                assert_eq!(toy.image, before);
            }
        }
        assert!(!toy.paused);
        assert_eq!(toy.held, i64::try_from(kept.len()).unwrap());
        if failures == 3 {
            break;
        }
    }
    assert_eq!(failures, 3, "the disk did not fill up");
    drop(ballast);
    drop((recorder, store));

    // It opens and verifies on the full disk, for reading and for writing.
    let check = |access| {
        let store = Arc::new(Store::open(&at, access).unwrap());
        assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
        for (id, hash) in &kept {
            assert_eq!(store.image_hash(*id).unwrap(), *hash);
        }
        store
    };
    check(Access::ReadOnly);
    let store = check(Access::ReadWrite);

    // With space again, what the guest wrote meanwhile is in the next checkpoint.
    let grown = Command::new("mount").args(["-o", "remount,size=16m"]).arg(dir.path()).status().unwrap();
    assert!(grown.success());
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    let next = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap().record;
    assert_eq!(store.image_hash(next.id).unwrap(), image_hash(&toy).unwrap());
    recorder.rollback(&mut toy, kept[0].0, &RollbackRequest::default()).unwrap();
    assert_eq!(image_hash(&toy).unwrap(), kept[0].1);
}
