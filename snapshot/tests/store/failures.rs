//! The machine fails at every step: the guest is resumed, nothing is lost, and no operation stays started.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use retrovisor_guest::{ClockPolicy, MachineError};
use retrovisor_snapshot::{
    CheckpointRequest, CurrentPolicy, Error, OperationRecord, OperationStatus, Recorder, RollbackRequest,
};

use crate::toy::{Lab, Toy, open};

fn lab() -> (Lab, retrovisor_snapshot::CheckpointRecord) {
    let mut lab = Lab::new(32);
    lab.toy.scribble(1, 1);
    let first = lab.checkpoint();
    lab.toy.scribble(1, 2);
    lab.toy.scribble(2, 3);
    lab.toy.image.device = b"new".to_vec();
    (lab, first)
}

#[test]
fn dirty_pages_of_a_failed_capture_are_in_the_next_checkpoint() {
    let (mut lab, _) = lab();
    lab.toy.faults.capture_state = 1;
    let failed = lab.recorder.checkpoint(&mut lab.toy, &CheckpointRequest::default());
    assert!(matches!(failed, Err(Error::Machine(_))));
    assert!(!lab.toy.paused);
    let next = lab.checkpoint();
    assert_eq!((next.sequence, next.dirty_pages, next.changed_pages), (2, 2, 2));
    assert_eq!(lab.toy.held, 2);
}

#[test]
fn a_checkpoint_whose_disks_are_not_durable_is_not_there() {
    let (mut lab, first) = lab();
    let before = lab.toy.image.clone();
    lab.toy.faults.sync_state = 1;
    let failed = lab.recorder.checkpoint(&mut lab.toy, &CheckpointRequest::default());
    assert!(matches!(failed, Err(Error::Machine(_))));
    lab.toy.faults.sync_state = 1;
    let failed = lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default());
    assert!(matches!(failed, Err(Error::Machine(_))));
    assert_eq!((&lab.toy.image, lab.toy.paused, lab.toy.held), (&before, false, 1));
    assert_eq!(lab.store.catalogue().checkpoints(lab.machine).unwrap().len(), 1);
    assert_eq!(lab.checkpoint().changed_pages, 2);
}

#[test]
fn a_machine_whose_devices_changed_is_refused_before_anything_is_written() {
    let rollback = |current| Some(RollbackRequest { current, ..RollbackRequest::default() });
    for request in [None, rollback(CurrentPolicy::Durable), rollback(CurrentPolicy::Staged)] {
        // A checkpoint calls it before its pause, too, and a rollback `check_state` instead.
        for call in 1..=if request.is_none() { 2 } else { 1 } {
            let (mut lab, first) = lab();
            let before = lab.toy.image.clone();
            lab.toy.captured = None;
            lab.toy.faults.check_devices = call;
            let failed = match &request {
                None => lab.recorder.checkpoint(&mut lab.toy, &CheckpointRequest::default()).map(drop),
                Some(request) => lab.recorder.rollback(&mut lab.toy, first.id, request).map(drop),
            };
            assert!(matches!(failed, Err(Error::Machine(_))), "{request:?} {call}: {failed:?}");
            assert!(request.is_some() || call == 2 || lab.toy.captured.is_none());
            assert_eq!((&lab.toy.image, lab.toy.paused, lab.toy.held), (&before, false, 1));
            assert_eq!(lab.store.catalogue().checkpoints(lab.machine).unwrap().len(), 1);
            assert_eq!(lab.store.catalogue().operations(lab.machine).unwrap(), []);
            assert_eq!(lab.checkpoint().changed_pages, 2);
        }
    }
}

#[test]
fn a_rollback_that_cannot_store_the_current_state_overwrites_nothing() {
    let (mut lab, first) = lab();
    let before = lab.toy.image.clone();
    lab.toy.faults.capture_state = 1;
    let failed = lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default());
    assert!(matches!(failed, Err(Error::Machine(_))));
    assert_eq!((&lab.toy.image, lab.toy.paused), (&before, false));
    assert_eq!(lab.store.catalogue().operations(lab.machine).unwrap(), []);
}

#[test]
fn a_rollback_that_fails_half_way_is_reverted() {
    for fault in ["write", "apply"] {
        let (mut lab, first) = lab();
        let before = lab.toy.image.clone();
        if fault == "write" {
            lab.toy.faults.write_page = 2;
        } else {
            lab.toy.faults.apply_state = 1;
        }
        let failed = lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default());
        let Err(Error::Reverted { current: Some(current), target, .. }) = failed else {
            panic!("{failed:?}")
        };
        assert_eq!(target, first.name);
        assert_eq!((&lab.toy.image, lab.toy.paused), (&before, false));
        let operations = lab.store.catalogue().operations(lab.machine).unwrap();
        assert_eq!(operations[0].status, OperationStatus::Failed);
        assert!(operations[0].detail["error"].as_str().unwrap().contains("injected"));
        assert_eq!(lab.store.catalogue().interrupted(lab.machine).unwrap(), None);
        // The current state is the position, and the machine continues from there.
        let next = lab.checkpoint();
        assert_eq!(lab.store.catalogue().checkpoint(next.parent.unwrap()).unwrap().name, current);
        assert_eq!(next.changed_pages, 0);
        lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default()).unwrap();
    }
}

#[test]
fn a_machine_that_cannot_be_reverted_stays_paused_and_is_reported() {
    let (mut lab, first) = lab();
    let before = lab.toy.image.clone();
    lab.toy.faults.apply_state = 1;
    lab.toy.faults.write_page = 4;
    let failed = lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default());
    let Err(Error::RevertFailed { current, .. }) = &failed else { panic!("{failed:?}") };
    assert!(lab.toy.paused);
    let cut_off = lab.store.catalogue().interrupted(lab.machine).unwrap().unwrap();
    assert_eq!((cut_off.status, cut_off.half_written.as_deref()), (OperationStatus::Failed, Some("")));
    let current = lab.store.catalogue().resolve(lab.machine, current).unwrap();
    lab.recorder.restore(&mut lab.toy, current.id, &RollbackRequest::default()).unwrap();
    assert_eq!(lab.toy.image, before);
    assert_eq!(lab.store.catalogue().interrupted(lab.machine).unwrap(), None);
}

fn last_operation(lab: &Lab) -> OperationRecord {
    lab.store.catalogue().operations(lab.machine).unwrap().pop().unwrap()
}

#[test]
fn a_restore_that_the_machine_refuses_is_marked_as_failed_and_moves_no_later_process() {
    for process in [None, Some("10:1")] {
        let (mut lab, first) = lab();
        let current = lab.checkpoint();
        let mut fresh = Toy::new(&lab.toy.identity.layout);
        if let Some(process) = process {
            lab.recorder.set_process(process);
        }
        fresh.faults.apply_state = 1;
        let failed = lab.recorder.restore(&mut fresh, first.id, &RollbackRequest::default());
        assert!(matches!(failed, Err(Error::Machine(_))), "{failed:?}");
        let operation = last_operation(&lab);
        assert_eq!(operation.status, OperationStatus::Failed);
        assert!(operation.detail["error"].as_str().unwrap().contains("injected"));
        assert_eq!(operation.half_written.as_deref(), process);
        let interrupted = lab.store.catalogue().interrupted(lab.machine).unwrap();
        assert_eq!(interrupted.is_some(), process.is_some());
        if let Some(interrupted) = interrupted {
            assert!(interrupted.concerns_process("10:1") && !interrupted.concerns_process("11:2"));
        }
        // The machine's position is the one before. A new process is not the one that was half written.
        assert_eq!(lab.recorder.position().unwrap().checkpoint, current.id);
        let Lab { dir, store, recorder, machine, .. } = lab;
        drop(recorder);
        drop(Recorder::fresh(Arc::clone(&store), machine).unwrap());
        assert_eq!(store.catalogue().interrupted(machine).unwrap(), None);
        drop(store);
        assert_eq!(open(dir.path()).catalogue().interrupted(machine).unwrap(), None);
    }
}

#[test]
fn every_failure_of_a_restore_ends_the_operation_and_the_next_restore_works() {
    for fault in ["dirty", "write", "apply"] {
        let (mut lab, first) = lab();
        lab.checkpoint();
        match fault {
            "dirty" => lab.toy.faults.take_dirty = 1,
            "write" => lab.toy.faults.write_page = 1,
            _ => lab.toy.faults.apply_state = 1,
        }
        assert!(lab.recorder.restore(&mut lab.toy, first.id, &RollbackRequest::default()).is_err());
        assert_eq!(last_operation(&lab).status, OperationStatus::Failed, "{fault}");
        let done = lab.recorder.restore(&mut lab.toy, first.id, &RollbackRequest::default()).unwrap();
        assert_eq!(done.operation.status, OperationStatus::Done, "{fault}");
        assert_eq!(done.operation.half_written, None);
    }
}

#[test]
fn a_recorder_that_is_dropped_in_the_middle_marks_the_operation_and_the_process() {
    for is_restore in [false, true] {
        let (mut lab, first) = lab();
        lab.recorder.set_process("10:1");
        lab.toy.faults.apply_panics = true;
        let (store, machine) = (Arc::clone(&lab.store), lab.machine);
        let Lab { dir: _dir, mut recorder, mut toy, .. } = lab;
        let dropped = catch_unwind(AssertUnwindSafe(move || {
            let request = RollbackRequest::default();
            if is_restore {
                drop(recorder.restore(&mut toy, first.id, &request));
            } else {
                drop(recorder.rollback(&mut toy, first.id, &request));
            }
        }));
        assert!(dropped.is_err());
        let operation = store.catalogue().interrupted(machine).unwrap().unwrap();
        assert_eq!(operation.status, OperationStatus::Failed);
        assert_eq!(operation.half_written.as_deref(), Some("10:1"));
    }
}

#[test]
fn an_operation_that_a_killed_process_left_started_is_failed_when_the_store_is_opened() {
    let (mut lab, first) = lab();
    lab.recorder.set_process("10:1");
    lab.toy.faults.apply_panics = true;
    let Lab { dir, store, mut recorder, mut toy, machine } = lab;
    let caught = catch_unwind(AssertUnwindSafe(|| {
        drop(recorder.rollback(&mut toy, first.id, &RollbackRequest::default()));
    }));
    assert!(caught.is_err());
    // As after a kill: no code of it runs any more.
    let started = store.catalogue().operations(machine).unwrap().pop().unwrap();
    assert_eq!(started.status, OperationStatus::Started);
    let copy = tempfile::tempdir().unwrap();
    copy_store(dir.path(), copy.path());
    drop((recorder, store));
    let store = open(copy.path());
    let operation = store.catalogue().interrupted(machine).unwrap().unwrap();
    assert_eq!(operation.status, OperationStatus::Failed);
    assert!(operation.detail["error"].as_str().unwrap().contains("process"));
    assert!(operation.concerns_process("10:1") && !operation.concerns_process("11:2"));
    // The checkpoints that it needs are not pruned.
    assert!(store.catalogue().checkpoint(operation.after.unwrap().checkpoint).is_ok());
}

fn copy_store(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_store(&entry.path(), &target);
        } else if !entry.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_clock_that_the_machine_cannot_move_is_refused_before_it_is_touched() {
    let (mut lab, first) = lab();
    let before = lab.toy.image.clone();
    lab.toy.clock_jump = false;
    // Any call that reports frames would consume this.
    lab.toy.faults.take_dirty = 1;
    let request = RollbackRequest { clock: ClockPolicy::JumpToNow, ..RollbackRequest::default() };
    let rollback = lab.recorder.rollback(&mut lab.toy, first.id, &request).unwrap_err();
    let restore = lab.recorder.restore(&mut lab.toy, first.id, &request).unwrap_err();
    for refused in [rollback, restore] {
        assert!(matches!(refused, Error::Machine(MachineError::Unsupported { .. })), "{refused}");
    }
    assert_eq!((&lab.toy.image, lab.toy.paused, lab.toy.faults.take_dirty), (&before, false, 1));
    assert_eq!(lab.store.catalogue().operations(lab.machine).unwrap(), []);
}
