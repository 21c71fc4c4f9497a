//! Staged rollbacks: the current state is made durable only after the guest was resumed.

use std::sync::Arc;

use retrovisor_snapshot::{
    CheckpointKind, CurrentPolicy, Error, OperationKind, OperationStatus, Recorder, RollbackRequest,
};

use crate::toy::{Lab, open};

fn staged() -> RollbackRequest {
    RollbackRequest { current: CurrentPolicy::Staged, ..RollbackRequest::default() }
}

fn lab() -> (Lab, retrovisor_snapshot::CheckpointRecord) {
    let mut lab = Lab::new(64);
    for page in 0..40 {
        lab.toy.scribble(page, page as u64);
    }
    let first = lab.checkpoint();
    for page in 10..20 {
        lab.toy.scribble(page, 1_000 + page as u64);
    }
    lab.checkpoint();
    lab.toy.scribble(15, 7);
    lab.toy.scribble(50, 8);
    lab.toy.image.device = b"new".to_vec();
    (lab, first)
}

fn markers(lab: &Lab) -> usize {
    let names = std::fs::read_dir(lab.dir.path()).unwrap().flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().starts_with("moving-")).count()
}

#[test]
fn the_current_state_is_kept_and_undo_returns_to_it() {
    let (mut lab, first) = lab();
    let before = lab.toy.image.clone();
    let watching = lab.recorder.watch();
    lab.recorder.written_since(watching);
    let report = lab.recorder.rollback(&mut lab.toy, first.id, &staged()).unwrap();
    assert_eq!((report.target.id, report.new_timeline, markers(&lab)), (first.id, true, 0));
    let current = report.current.unwrap();
    assert_eq!((current.kind, current.changed_pages), (CheckpointKind::BeforeRollback, 2));
    assert_eq!(report.operation.kind, OperationKind::Rollback);
    assert_eq!(report.operation.status, OperationStatus::Done);
    assert_eq!(lab.recorder.position(), report.operation.after);
    // A consumer of dirty frames sees those that the rollback wrote.
    let written = lab.recorder.written_since(watching);
    assert_eq!(written.indices().collect::<Vec<_>>(), (10..20).chain([50]).collect::<Vec<_>>());
    let next = lab.checkpoint();
    assert_eq!((next.parent, next.changed_pages, next.timeline), (Some(first.id), 0, report.timeline));
    lab.recorder.undo(&mut lab.toy, &staged()).unwrap();
    assert_eq!(lab.toy.image, before);
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn a_rollback_to_a_recent_checkpoint_reads_no_pack() {
    let (mut lab, first) = lab();
    let before = lab.store.reads().frames;
    lab.recorder.rollback(&mut lab.toy, first.id, &staged()).unwrap();
    assert_eq!(lab.store.reads().frames, before);
}

#[test]
fn whatever_fails_the_guest_is_reverted() {
    for fault in ["capture", "write", "apply", "sync"] {
        let (mut lab, first) = lab();
        let before = lab.toy.image.clone();
        match fault {
            "capture" => lab.toy.faults.capture_state = 1,
            "write" => lab.toy.faults.write_page = 3,
            "apply" => lab.toy.faults.apply_state = 1,
            // The guest ran on from the target already.
            _ => lab.toy.faults.sync_state = 1,
        }
        let failed = lab.recorder.rollback(&mut lab.toy, first.id, &staged());
        match &failed {
            Err(Error::Machine(_)) if fault == "capture" => (),
            Err(Error::Reverted { target, .. }) if fault != "capture" => assert_eq!(*target, first.name),
            other => panic!("{fault}: {other:?}"),
        }
        assert_eq!((&lab.toy.image, lab.toy.paused, lab.toy.held), (&before, false, 2), "{fault}");
        assert_eq!(markers(&lab), 0);
        assert_eq!(lab.store.catalogue().interrupted(lab.machine).unwrap(), None);
        assert_eq!(lab.store.catalogue().operations(lab.machine).unwrap(), []);
        assert_eq!(lab.checkpoint().changed_pages, 2, "{fault}");
        lab.recorder.rollback(&mut lab.toy, first.id, &staged()).unwrap();
    }
}

#[test]
fn a_rollback_that_a_process_did_not_end_is_known_to_the_next() {
    let (mut lab, first) = lab();
    // Neither the target nor the current state can be applied.
    lab.toy.faults.write_page = 3;
    lab.toy.faults.apply_state = 1;
    let failed = lab.recorder.rollback(&mut lab.toy, first.id, &staged());
    let Err(Error::RevertFailed { current, .. }) = &failed else { panic!("{failed:?}") };
    assert!(lab.toy.paused);
    assert_eq!(markers(&lab), 1);
    // The current state was stored even so.
    let current = lab.store.catalogue().resolve(lab.machine, current).unwrap();
    let image = lab.toy.captured.clone().unwrap();
    let Lab { dir, store, mut toy, recorder, machine } = lab;
    drop((store, recorder));

    let store = open(dir.path());
    let cut_off = store.catalogue().interrupted(machine).unwrap().unwrap();
    assert_eq!(cut_off.status, OperationStatus::Failed);
    assert_eq!(cut_off.half_written.as_deref(), Some(""));
    assert_eq!(cut_off.after.unwrap().checkpoint, first.id);
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    recorder.restore(&mut toy, current.id, &RollbackRequest::default()).unwrap();
    assert_eq!(toy.image, image);
    assert_eq!(store.catalogue().interrupted(machine).unwrap(), None);
    // The marker is read once.
    drop((store, recorder));
    assert_eq!(open(dir.path()).catalogue().interrupted(machine).unwrap(), None);
}
