//! Branches: a second machine continues from a checkpoint of another one.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use retrovisor_guest::{BLOCK_SIZE, ClockPolicy, Gpa, Machine, MemoryIo as _, MemoryLayout};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{
    BranchOrigin, BranchProgress, BranchRequest, CheckpointId, CheckpointRecord, CheckpointRequest,
    CompactOptions, Error, OperationKind, OperationStatus, Recorder, RetentionPolicy, RollbackRequest, Store,
    image_hash,
};

use crate::toy::{open, page_of, quick_dir};

const PAGES: u64 = 64;
const BLOCKS: usize = 40;

struct Guest {
    machine: MemoryMachine,
    recorder: Recorder,
}

fn machine(name: &str) -> MemoryMachine {
    let layout = MemoryLayout::flat(PAGES * 4096).unwrap();
    MemoryMachine::new(name, layout).unwrap().with_disk(vec![7; BLOCKS * BLOCK_SIZE])
}

fn go_on(_: BranchProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

impl Guest {
    fn fresh(store: &Arc<Store>, name: &str) -> Self {
        let machine = machine(name);
        let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
        Self { machine, recorder: Recorder::new(Arc::clone(store), id).unwrap() }
    }

    fn branch(store: &Arc<Store>, name: &str, origin: CheckpointId) -> (Self, CheckpointRecord) {
        let mut recorder = Recorder::begin_branch(store, name, origin, &BranchRequest::default()).unwrap();
        let mut machine = machine(name);
        let report = recorder.adopt(&mut machine, ClockPolicy::StandStill, &mut go_on).unwrap();
        assert_eq!(report.origin.id, origin);
        assert_eq!(image_hash(machine.memory()).unwrap(), store.image_hash(origin).unwrap());
        // What distinguishes it from the origin.
        machine.poke(Gpa(4096 * (PAGES - 1)), name.as_bytes()).unwrap();
        let mut guest = Self { machine, recorder };
        let first = guest.checkpoint();
        guest.machine.resume().unwrap();
        (guest, first)
    }

    fn write(&mut self, page: u64, block: usize, seed: u64) {
        self.machine.poke(Gpa(page * 4096), &page_of(seed)).unwrap();
        let start = block * BLOCK_SIZE;
        self.machine.disk_mut()[start..start + BLOCK_SIZE].copy_from_slice(&page_of(seed + 500));
    }

    fn checkpoint(&mut self) -> CheckpointRecord {
        self.recorder.checkpoint(&mut self.machine, &CheckpointRequest::default()).unwrap().record
    }

    fn image(&mut self) -> (blake3::Hash, Vec<u8>) {
        (image_hash(self.machine.memory()).unwrap(), self.machine.disk_mut().clone())
    }
}

fn verify(store: &Store) {
    let report = store.verify(&mut |_| ()).unwrap();
    assert!(report.damaged.is_empty(), "{:?}", report.damaged);
}

/// A machine with some history, and the checkpoint from which it is branched: not the newest.
fn origin(dir: &Path) -> (Arc<Store>, Guest, CheckpointRecord, (blake3::Hash, Vec<u8>)) {
    let store = open(dir);
    let mut web = Guest::fresh(&store, "web");
    for turn in 0..10 {
        web.write(turn, usize::try_from(turn).unwrap(), 100 + turn);
    }
    web.checkpoint();
    web.write(3, 4, 200);
    let at = web.checkpoint();
    let image = web.image();
    web.write(5, 6, 300);
    web.checkpoint();
    (store, web, at, image)
}

#[test]
fn a_branch_goes_on_from_there_and_stores_only_what_it_writes() {
    let dir = quick_dir();
    let (store, mut web, at, image) = origin(dir.path());
    let plan = store.plan_branch(at.id).unwrap();
    assert_eq!((plan.machine.name.as_str(), plan.origin.id, plan.data_pages), ("web", at.id, 10));
    assert_eq!((plan.disks.len(), plan.disks[0].written_blocks), (1, 10));
    assert!(plan.disks_missing.is_empty());

    let (mut new, first) = Guest::branch(&store, "new", at.id);
    assert_eq!(new.machine.disk_mut(), &image.1[..]);
    assert_eq!(
        (first.sequence, first.parent, first.dirty_pages),
        (1, None, 1),
        "only what was written was looked at"
    );
    assert_eq!((first.new_pages, first.changed_pages), (1, 11), "and only that is stored");
    let from = BranchOrigin { machine: "web".into(), checkpoint: at.name.clone(), sequence: at.sequence };
    let id = store.catalogue().machine("new").unwrap().id;
    assert_eq!(store.catalogue().branched_from(id).unwrap(), Some(from.clone()));
    assert_eq!(store.catalogue().branched_from(at.machine).unwrap(), None);
    let timelines = store.catalogue().timelines(id).unwrap();
    assert_eq!(timelines.iter().map(|timeline| timeline.origin).collect::<Vec<_>>(), [Some(at.id)]);
    let operation = store.catalogue().operations(id).unwrap().remove(0);
    assert_eq!((operation.kind, operation.status), (OperationKind::Branch, OperationStatus::Done));
    assert_eq!(operation.before.unwrap().checkpoint, at.id);
    assert_eq!(operation.after, store.catalogue().machine("new").unwrap().position);

    // Both continue independently.
    web.write(9, 9, 400);
    new.write(8, 8, 401);
    let (theirs, ours) = (web.checkpoint(), new.checkpoint());
    assert_eq!((ours.dirty_pages, ours.new_pages, ours.parent), (1, 2, Some(first.id)));
    assert_eq!((theirs.dirty_pages, theirs.new_pages), (1, 2));
    let (web_now, new_now) = (web.image(), new.image());
    assert_ne!(web_now.0, new_now.0);
    verify(&store);

    // It is moved within its own history, with its disk.
    let request = RollbackRequest::default();
    new.recorder.rollback(&mut new.machine, first.id, &request).unwrap();
    assert_eq!(new.machine.disk_mut(), &image.1[..]);
    new.recorder.undo(&mut new.machine, &request).unwrap();
    assert_eq!(new.image(), new_now);
    let beyond = new.recorder.undo(&mut new.machine, &request);
    assert!(matches!(beyond, Err(Error::Nothing { .. })), "to have branched off is nothing to undo");
    assert_eq!(web.image(), web_now);

    // A branch of the branch, and a new process for it from the store alone.
    let (mut third, _) = Guest::branch(&store, "third", ours.id);
    assert_eq!(third.machine.disk_mut(), &new_now.1[..]);
    third.write(1, 1, 500);
    let last = third.checkpoint();
    let expected = third.image();
    drop(third);
    let mut again = machine("third");
    let mut recorder = Recorder::new(Arc::clone(&store), last.machine).unwrap();
    recorder.restore(&mut again, last.id, &request).unwrap();
    assert_eq!((image_hash(again.memory()).unwrap(), again.disk_mut().clone()), expected);
    verify(&store);
}

#[test]
fn what_a_branch_needs_outlives_its_origin() {
    let dir = quick_dir();
    let (store, mut web, at, image) = origin(dir.path());
    let (mut new, first) = Guest::branch(&store, "new", at.id);
    let hash = store.image_hash(first.id).unwrap();
    web.write(0, 0, 600);
    web.checkpoint();
    let policy =
        RetentionPolicy { keep_last: 1, keep_hourly: 0, keep_daily: 0, ..RetentionPolicy::default() };
    let plan = store.plan_prune(&policy, Some(at.machine)).unwrap();
    let report = store
        .prune(&plan, &CompactOptions { garbage_percent_min: 0, vacuum_percent_min: 0 }, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(report.checkpoints >= 3, "{report:?}");
    assert!(store.catalogue().checkpoint(at.id).is_err(), "the origin is gone");
    assert_eq!(store.image_hash(first.id).unwrap(), hash);
    new.write(30, 30, 1);
    let request = RollbackRequest::default();
    new.recorder.rollback(&mut new.machine, first.id, &request).unwrap();
    assert_eq!(new.machine.disk_mut(), &image.1[..]);
    let id = first.machine;
    assert_eq!(
        store.catalogue().branched_from(id).unwrap().unwrap().checkpoint,
        at.name,
        "it is still named"
    );
    verify(&store);

    // It can be exported to another store.
    let file = dir.path().join("new.rv");
    store.export_archive(id, &file, &mut |_| ControlFlow::Continue(())).unwrap();
    let elsewhere = quick_dir();
    let there = open(elsewhere.path());
    there.import_archive(None, &file, &mut |_| ControlFlow::Continue(())).unwrap();
    let brought = there.catalogue().checkpoints(there.catalogue().machine("new").unwrap().id).unwrap();
    assert_eq!(there.image_hash(brought[0].id).unwrap(), hash);
    verify(&there);
}

#[test]
fn an_archive_of_a_branch_leaves_the_other_machine_behind() {
    let dir = quick_dir();
    let (store, _web, at, _) = origin(dir.path());
    let (_new, first) = Guest::branch(&store, "new", at.id);
    let file = dir.path().join("new.rv");
    store.export_archive(first.machine, &file, &mut |_| ControlFlow::Continue(())).unwrap();
    let elsewhere = quick_dir();
    let there = open(elsewhere.path());
    there.import_archive(None, &file, &mut |_| ControlFlow::Continue(())).unwrap();
    let new = there.catalogue().machine("new").unwrap();
    assert_eq!(there.catalogue().machines().unwrap().len(), 1);
    assert_eq!(there.catalogue().branched_from(new.id).unwrap().unwrap().machine, "web");
    let brought = there.catalogue().checkpoints(new.id).unwrap();
    assert_eq!(there.image_hash(brought[0].id).unwrap(), store.image_hash(first.id).unwrap());
    verify(&there);
}

#[test]
fn nothing_half_stays_and_the_origin_is_held_meanwhile() {
    let dir = quick_dir();
    let (store, mut web, at, _) = origin(dir.path());
    let begin = |store| Recorder::begin_branch(store, "new", at.id, &BranchRequest::default());

    // Stopped in the middle.
    let mut recorder = begin(&store).unwrap();
    let stopped =
        recorder.adopt(&mut machine("new"), ClockPolicy::StandStill, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Stopped)));
    recorder.abandon_branch();
    assert!(matches!(store.catalogue().machine("new"), Err(Error::NotFound { .. })));

    // Another shape.
    let mut recorder = begin(&store).unwrap();
    let mut small = MemoryMachine::new("new", MemoryLayout::flat(4096).unwrap()).unwrap();
    assert!(recorder.adopt(&mut small, ClockPolicy::StandStill, &mut go_on).is_err());
    recorder.abandon_branch();

    // A name that is taken, a checkpoint that is not there.
    let taken = Recorder::begin_branch(&store, "web", at.id, &BranchRequest::default());
    assert!(matches!(taken, Err(Error::Exists { .. })));
    let nowhere = Recorder::begin_branch(&store, "new", CheckpointId(9999), &BranchRequest::default());
    assert!(matches!(nowhere, Err(Error::NotFound { .. })));
    assert!(matches!(store.plan_branch(CheckpointId(9999)), Err(Error::NotFound { .. })));

    // Killed in the middle; meanwhile the origin cannot be pruned.
    let mut recorder = begin(&store).unwrap();
    recorder.adopt(&mut machine("new"), ClockPolicy::StandStill, &mut go_on).unwrap();
    web.write(0, 0, 600);
    web.checkpoint();
    let policy =
        RetentionPolicy { keep_last: 1, keep_hourly: 0, keep_daily: 0, ..RetentionPolicy::default() };
    let plan = store.plan_prune(&policy, Some(at.machine)).unwrap();
    store.prune(&plan, &CompactOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(store.catalogue().checkpoint(at.id).is_ok(), "the origin is held");
    std::mem::forget(recorder);
    let half = store.catalogue().remove_incomplete_branches().unwrap();
    assert_eq!(half.iter().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["new"]);
    assert!(matches!(store.catalogue().machine("new"), Err(Error::NotFound { .. })));
    verify(&store);

    // After that it can be made, and nothing incomplete remains.
    let (_new, first) = Guest::branch(&store, "new", at.id);
    assert!(store.catalogue().remove_incomplete_branches().unwrap().is_empty());
    assert_eq!(first.sequence, 1);
    store.catalogue().machine("new").unwrap();
}

#[test]
fn a_machine_that_is_removed_leaves_its_branches_whole() {
    let dir = quick_dir();
    let (store, mut web, at, image) = origin(dir.path());
    web.recorder.rollback(&mut web.machine, at.id, &RollbackRequest::default()).unwrap();
    let (mut new, first) = Guest::branch(&store, "new", at.id);
    let id = web.recorder.machine();
    drop(web);

    let planned = store.plan_removal(id).unwrap();
    assert_eq!((planned.checkpoints, planned.branches.as_slice()), (4, &["new".to_owned()][..]));
    assert!(planned.stored_bytes > 0);
    let removed = store.remove_machine(id, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((removed.checkpoints, removed.stopped), (planned.checkpoints, false));
    assert!(removed.compaction.contents_removed > 0, "{removed:?}");
    assert!(matches!(store.catalogue().machine("web"), Err(Error::NotFound { .. })));
    verify(&store);

    new.write(1, 1, 500);
    new.checkpoint();
    new.recorder.rollback(&mut new.machine, first.id, &RollbackRequest::default()).unwrap();
    assert_eq!(new.machine.disk_mut(), &image.1[..]);
    let branched = store.catalogue().branched_from(new.recorder.machine()).unwrap().unwrap();
    assert_eq!((branched.machine.as_str(), branched.checkpoint), ("web", at.name));
    assert_eq!(store.catalogue().operations(new.recorder.machine()).unwrap()[0].before, None);
    // Its name is free.
    let mut again = Guest::fresh(&store, "web");
    again.write(2, 2, 600);
    again.checkpoint();
    verify(&store);
}

#[test]
fn a_machine_that_another_one_was_taken_to_is_not_removed() {
    let dir = quick_dir();
    let (store, web, at, _) = origin(dir.path());
    let mut other = Guest::fresh(&store, "other");
    other.checkpoint();
    other.recorder.rollback(&mut other.machine, at.id, &RollbackRequest::default()).unwrap();
    let refused = store.remove_machine(web.recorder.machine(), &mut |_| ControlFlow::Continue(()));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("remove other first"), "{refused}");
    verify(&store);
}
