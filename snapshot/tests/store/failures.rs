//! The machine fails at every step: the guest never stays paused because of us, and nothing is lost.

use retrovisor_guest::{ClockPolicy, MachineError};
use retrovisor_snapshot::{CheckpointRequest, Error, OperationStatus, RollbackRequest};

use crate::toy::Lab;

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
fn a_rollback_that_cannot_keep_the_present_overwrites_nothing() {
    let (mut lab, first) = lab();
    let before = lab.toy.image.clone();
    lab.toy.faults.capture_state = 1;
    let failed = lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default());
    assert!(matches!(failed, Err(Error::Machine(_))));
    assert_eq!((&lab.toy.image, lab.toy.paused), (&before, false));
    assert_eq!(lab.store.catalogue().operations(lab.machine).unwrap(), []);
}

#[test]
fn a_rollback_that_fails_half_way_puts_the_present_back() {
    for fault in ["write", "apply"] {
        let (mut lab, first) = lab();
        let before = lab.toy.image.clone();
        if fault == "write" {
            lab.toy.faults.write_page = 2;
        } else {
            lab.toy.faults.apply_state = 1;
        }
        let failed = lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default());
        let Err(Error::PutBack { present, target, .. }) = failed else { panic!("{failed:?}") };
        assert_eq!(target, first.name);
        assert_eq!((&lab.toy.image, lab.toy.paused), (&before, false));
        let operations = lab.store.catalogue().operations(lab.machine).unwrap();
        assert_eq!(operations[0].status, OperationStatus::Failed);
        assert!(operations[0].detail["error"].as_str().unwrap().contains("injected"));
        assert_eq!(lab.store.catalogue().interrupted(lab.machine).unwrap(), None);
        // The machine stands at the present, and goes on from there.
        let next = lab.checkpoint();
        assert_eq!(lab.store.catalogue().checkpoint(next.parent.unwrap()).unwrap().name, present);
        assert_eq!(next.changed_pages, 0);
        lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default()).unwrap();
    }
}

#[test]
fn a_machine_that_cannot_be_put_back_stays_paused_and_is_told_about() {
    let (mut lab, first) = lab();
    let before = lab.toy.image.clone();
    lab.toy.faults.apply_state = 1;
    lab.toy.faults.write_page = 4;
    let failed = lab.recorder.rollback(&mut lab.toy, first.id, &RollbackRequest::default());
    let Err(Error::Stranded { present, .. }) = &failed else { panic!("{failed:?}") };
    assert!(lab.toy.paused);
    let cut_off = lab.store.catalogue().interrupted(lab.machine).unwrap().unwrap();
    assert_eq!(cut_off.status, OperationStatus::Started);
    let present = lab.store.catalogue().resolve(lab.machine, present).unwrap();
    lab.recorder.restore(&mut lab.toy, present.id, &RollbackRequest::default()).unwrap();
    assert_eq!(lab.toy.image, before);
    assert_eq!(lab.store.catalogue().interrupted(lab.machine).unwrap(), None);
}

#[test]
fn a_clock_that_the_machine_cannot_move_is_refused_before_it_is_touched() {
    let (mut lab, first) = lab();
    let before = lab.toy.image.clone();
    lab.toy.clock_jump = false;
    // Any call that finds frames would use this up.
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
