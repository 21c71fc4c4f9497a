//! Rollback, undo and redo: what they report, which timelines they make, and that nothing is lost.

use retrovisor_guest::Machine;
use retrovisor_snapshot::{CheckpointKind, Error, OperationKind, OperationStatus, RollbackRequest};

use crate::toy::{Lab, Toy};

fn because(reason: &str) -> RollbackRequest {
    RollbackRequest { detail: serde_json::json!({ "reason": reason }), ..RollbackRequest::default() }
}

#[test]
fn a_rollback_keeps_the_future_and_undo_goes_back_there() {
    let mut lab = Lab::new(64);
    lab.toy.scribble(3, 1);
    let good = lab.checkpoint();
    lab.toy.scribble(3, 2);
    lab.toy.scribble(4, 3);
    let bad = lab.checkpoint();
    lab.toy.scribble(5, 4);
    let future = lab.toy.image.clone();

    let plan = lab.store.plan_rollback(lab.machine, good.id).unwrap();
    assert_eq!((plan.current.id, plan.target.id, plan.pages), (bad.id, good.id, 2));
    assert_eq!(plan.left_behind.iter().map(|c| c.id).collect::<Vec<_>>(), [bad.id]);

    let report = lab.recorder.rollback(&mut lab.toy, good.id, &because("test")).unwrap();
    assert!(!lab.toy.paused);
    assert_eq!(report.pages_written, 3);
    assert!(report.new_timeline);
    let current = report.current.unwrap();
    assert_eq!(
        (current.kind, current.parent, current.timeline),
        (CheckpointKind::BeforeRollback, Some(bad.id), bad.timeline)
    );
    assert_eq!(report.operation.kind, OperationKind::Rollback);
    assert_eq!(report.operation.status, OperationStatus::Done);
    assert_eq!(report.operation.detail["reason"], "test");
    assert_eq!(lab.recorder.position(), report.operation.after);

    lab.toy.scribble(6, 5);
    let other = lab.checkpoint();
    assert_eq!((other.parent, other.timeline), (Some(good.id), report.timeline));
    let past = lab.toy.image.clone();

    let undone = lab.recorder.undo(&mut lab.toy, &because("no")).unwrap();
    assert_eq!(lab.toy.image, future);
    // The abandoned timeline continues at its tip.
    assert!(!undone.new_timeline);
    assert_eq!((undone.target.id, undone.timeline), (current.id, bad.timeline));
    assert_eq!(undone.operation.undoes, Some(report.operation.id));
    let next = lab.checkpoint();
    assert_eq!((next.parent, next.timeline, next.changed_pages), (Some(current.id), bad.timeline, 0));

    let redone = lab.recorder.redo(&mut lab.toy, &because("yes")).unwrap();
    assert_eq!(lab.toy.image, past);
    assert_eq!(redone.operation.undoes, Some(undone.operation.id));
    assert!(matches!(lab.recorder.redo(&mut lab.toy, &because("")), Err(Error::Nothing { what: "redo" })));

    let again = lab.recorder.undo(&mut lab.toy, &because("no")).unwrap();
    assert_eq!(lab.toy.image, future);
    assert_eq!(again.operation.undoes, Some(redone.operation.id));
    assert!(matches!(lab.recorder.undo(&mut lab.toy, &because("")), Err(Error::Nothing { what: "undo" })));

    let timelines = lab.store.catalogue().timelines(lab.machine).unwrap();
    assert_eq!(timelines.iter().map(|t| t.origin).collect::<Vec<_>>(), [None, Some(good.id)]);
    assert_eq!(lab.store.catalogue().operations(lab.machine).unwrap().len(), 4);
    let kinds = lab
        .store
        .catalogue()
        .query("SELECT kind, status FROM v_operation ORDER BY operation", &[], 9)
        .unwrap();
    assert_eq!(
        kinds.rows.iter().map(|row| row[0].as_str().unwrap()).collect::<Vec<_>>(),
        ["rollback", "undo", "redo", "undo"]
    );
}

#[test]
fn a_second_undo_goes_further_back_and_a_rollback_forgets_redo() {
    let mut lab = Lab::new(16);
    lab.toy.scribble(0, 1);
    let first = lab.checkpoint();
    lab.toy.scribble(0, 2);
    let a = lab.toy.image.clone();
    lab.recorder.rollback(&mut lab.toy, first.id, &because("")).unwrap();
    lab.toy.scribble(0, 3);
    let b = lab.toy.image.clone();
    lab.recorder.rollback(&mut lab.toy, first.id, &because("")).unwrap();
    lab.recorder.undo(&mut lab.toy, &because("")).unwrap();
    assert_eq!(lab.toy.image, b);
    lab.recorder.undo(&mut lab.toy, &because("")).unwrap();
    assert_eq!(lab.toy.image, a);
    lab.recorder.redo(&mut lab.toy, &because("")).unwrap();
    assert_eq!(lab.toy.image, b);
    lab.recorder.rollback(&mut lab.toy, first.id, &because("")).unwrap();
    assert!(matches!(lab.recorder.redo(&mut lab.toy, &because("")), Err(Error::Nothing { .. })));
}

#[test]
fn an_undo_to_a_timeline_that_went_on_begins_a_new_one() {
    let mut lab = Lab::new(16);
    lab.toy.scribble(0, 1);
    let first = lab.checkpoint();
    let report = lab.recorder.rollback(&mut lab.toy, first.id, &because("")).unwrap();
    let current = report.current.unwrap();
    // Another machine continues from there first.
    let mut twin = Toy::new(&lab.toy.identity.layout);
    lab.recorder.restore(&mut twin, current.id, &because("")).unwrap();
    twin.resume().unwrap();
    twin.scribble(1, 1);
    let next =
        lab.recorder.checkpoint(&mut twin, &retrovisor_snapshot::CheckpointRequest::default()).unwrap();
    assert_eq!(next.record.timeline, current.timeline);
    lab.recorder.undo(&mut twin, &because("")).unwrap();
    let undone = lab.recorder.undo(&mut twin, &because("")).unwrap();
    assert_eq!(undone.target.id, current.id);
    assert!(undone.new_timeline);
}

#[test]
fn another_machine_of_the_same_shape_goes_on_from_a_checkpoint() {
    let mut lab = Lab::new(16);
    lab.toy.scribble(2, 7);
    lab.toy.image.device = vec![1, 2, 3];
    let origin = lab.checkpoint();
    let mut clone = Toy::new(&lab.toy.identity.layout);
    clone.identity.name = "clone".into();
    let id = lab.store.catalogue().add_machine(&clone.identity).unwrap().id;
    let mut recorder = retrovisor_snapshot::Recorder::new(lab.store.clone(), id).unwrap();
    recorder.restore(&mut clone, origin.id, &because("branch")).unwrap();
    assert_eq!(clone.image, lab.toy.image);
    clone.resume().unwrap();
    clone.scribble(3, 8);
    let first =
        recorder.checkpoint(&mut clone, &retrovisor_snapshot::CheckpointRequest::default()).unwrap().record;
    assert_eq!(
        (first.sequence, first.parent, first.changed_pages, first.machine),
        (1, Some(origin.id), 1, id)
    );
    assert_eq!(lab.store.changed(origin.id, first.id).unwrap().len(), 1);
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);

    let mut other = Toy::new(&retrovisor_guest::MemoryLayout::flat(4096).unwrap());
    other.identity.name = "small".into();
    assert!(matches!(recorder.restore(&mut other, origin.id, &because("")), Err(Error::Machine(_))));
    let id = lab.store.catalogue().add_machine(&other.identity).unwrap().id;
    let mut recorder = retrovisor_snapshot::Recorder::new(lab.store.clone(), id).unwrap();
    assert!(matches!(recorder.restore(&mut other, origin.id, &because("")), Err(Error::Invalid { .. })));
}

#[test]
fn a_paused_machine_stays_paused() {
    let mut lab = Lab::new(16);
    lab.checkpoint();
    lab.toy.pause().unwrap();
    let second = lab.checkpoint();
    assert!(lab.toy.paused);
    lab.recorder.rollback(&mut lab.toy, second.id, &because("")).unwrap();
    assert!(lab.toy.paused);
}
