//! Disks in the store: captured, rolled back, restored elsewhere, read, verified.

use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use retrovisor_guest::{
    BLOCK_SIZE, DiskIo as _, Gpa, Machine, MachineError, MachineState, MemoryLayout, StateIo as _,
};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{
    Access, CheckpointId, CheckpointRequest, CompactOptions, Error, MachineId, Recorder, RecorderSettings,
    RetentionPolicy, RollbackRequest, Store,
};

use crate::toy::{open, page_of, quick_dir};

const BLOCKS: usize = 700;
/// The last block is cut off.
const SIZE: usize = BLOCKS * BLOCK_SIZE - 1536;

struct Lab {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    machine: MemoryMachine,
    id: MachineId,
    recorder: Recorder,
}

fn base() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for block in 0..BLOCKS / 2 {
        let start = block * BLOCK_SIZE;
        bytes[start..start + BLOCK_SIZE].copy_from_slice(&page_of(block as u64 + 1_000_000));
    }
    bytes
}

fn machine() -> MemoryMachine {
    MemoryMachine::new("m", MemoryLayout::flat(16 * 4096).unwrap()).unwrap().with_disk(base())
}

impl Lab {
    fn new(settings: RecorderSettings) -> Self {
        let dir = quick_dir();
        let store = open(dir.path());
        let machine = machine();
        let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
        let recorder = Recorder::with_settings(Arc::clone(&store), id, settings).unwrap();
        Self { dir, store, machine, id, recorder }
    }

    fn checkpoint(&mut self) -> CheckpointId {
        self.recorder.checkpoint(&mut self.machine, &CheckpointRequest::default()).unwrap().record.id
    }

    fn rollback(&mut self, to: CheckpointId) -> u64 {
        let went = self.recorder.rollback(&mut self.machine, to, &RollbackRequest::default());
        went.unwrap().blocks_written
    }

    /// The whole disk at a checkpoint, from the store.
    fn export(&self, at: CheckpointId) -> Vec<u8> {
        let image = self.store.disk(at, "d0").unwrap();
        let base = base();
        let mut out = Cursor::new(Vec::new());
        image
            .export(&mut out, &mut |block, page| {
                let start = usize::try_from(block).unwrap() * BLOCK_SIZE;
                let end = (start + BLOCK_SIZE).min(base.len());
                page.fill(0);
                page[..end - start].copy_from_slice(&base[start..end]);
                Ok(())
            })
            .unwrap();
        out.into_inner()
    }

    fn write(&mut self, block: usize, seed: u64) {
        let start = block * BLOCK_SIZE;
        let end = (start + BLOCK_SIZE).min(SIZE);
        let page = if seed == 0 { [0; BLOCK_SIZE] } else { page_of(seed) };
        self.machine.disk_mut()[start..end].copy_from_slice(&page[..end - start]);
    }

    /// Releases everything that the driver retains.
    fn forget_all(&mut self) {
        let disks = self.machine.retained_disks().unwrap();
        self.machine.release_state(&MachineState { disks, ..MachineState::default() }).unwrap();
    }

    fn verify(&self) {
        let report = self.store.verify(&mut |_| ()).unwrap();
        assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    }
}

#[test]
fn only_written_blocks_are_stored_and_a_block_that_memory_holds_is_stored_once() {
    let mut lab = Lab::new(RecorderSettings::default());
    let one = lab.checkpoint();
    assert_eq!(lab.store.disk(one, "d0").unwrap().written().count(), 0);
    let record = &lab.store.disks(one).unwrap()[0];
    assert_eq!((record.name.as_str(), record.size_bytes), ("d0", SIZE as u64));
    assert!(record.base.is_some());

    // The guest's page cache and its disk have the same contents.
    lab.machine.poke(Gpa(5 * 4096), &page_of(77)).unwrap();
    lab.write(3, 77);
    lab.write(BLOCKS - 1, 78);
    lab.write(4, 0);
    let two = lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap().record;
    // One for both, one for the last block.
    assert_eq!(two.new_pages, 2);
    let image = lab.store.disk(two.id, "d0").unwrap();
    assert!(image.written().eq([3, 4, BLOCKS as u64 - 1]));
    assert!(lab.export(two.id) == *lab.machine.disk_mut());
    assert!(lab.export(one) == base());
    assert!(matches!(lab.store.disk(two.id, "d1"), Err(Error::NotFound { .. })));
    lab.verify();
}

#[test]
fn a_disk_comes_back_from_the_store_when_the_driver_lost_it() {
    let mut lab = Lab::new(RecorderSettings::default());
    lab.write(10, 1);
    lab.write(2, 0);
    let (one, at_one) = (lab.checkpoint(), lab.machine.disk_mut().clone());
    lab.write(10, 2);
    lab.write(11, 3);
    lab.write(2, 5);
    let (two, at_two) = (lab.checkpoint(), lab.machine.disk_mut().clone());
    // The driver retains both: nothing is written.
    assert_eq!(lab.rollback(one), 0);
    assert!(*lab.machine.disk_mut() == at_one);
    assert_eq!(lab.rollback(two), 0);
    assert!(*lab.machine.disk_mut() == at_two);

    lab.write(12, 9);
    lab.forget_all();
    assert_eq!(lab.rollback(one), 4);
    assert!(*lab.machine.disk_mut() == at_one);
    // Changes continue to be relative to that state.
    lab.write(30, 4);
    let (three, at_three) = (lab.checkpoint(), lab.machine.disk_mut().clone());
    assert!(lab.export(three) == at_three && lab.export(one) == at_one);
    let undone = lab.recorder.undo(&mut lab.machine, &RollbackRequest::default()).unwrap();
    assert_eq!(undone.blocks_written, 0);
    let mut with_nine = at_two.clone();
    with_nine[12 * BLOCK_SIZE..13 * BLOCK_SIZE].copy_from_slice(&page_of(9));
    assert!(*lab.machine.disk_mut() == with_nine);

    // A new process, and a store opened again: all from the packs.
    let Lab { dir, store, machine, id, recorder } = lab;
    drop((recorder, store, machine));
    let store = open(dir.path());
    let recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let mut lab = Lab { dir, store, machine: self::machine(), id, recorder };
    for (target, image) in [(three, &at_three), (one, &at_one), (two, &at_two)] {
        // The earlier contents of the disk do not matter.
        lab.write(600, 123);
        lab.write(10, 124);
        let report = lab.recorder.restore(&mut lab.machine, target, &RollbackRequest::default()).unwrap();
        assert!(report.blocks_written > 0);
        assert!(lab.machine.disk_mut() == image);
        lab.machine.resume().unwrap();
        lab.write(99, 5);
        let next = lab.checkpoint();
        assert!(lab.export(next) == *lab.machine.disk_mut());
        lab.forget_all();
    }
    lab.verify();
    assert!(lab.export(one) == at_one && lab.export(two) == at_two);
}

#[test]
fn another_base_image_is_refused_before_anything_is_touched() {
    let mut lab = Lab::new(RecorderSettings::default());
    let one = lab.checkpoint();
    lab.write(1, 1);
    let _two = lab.checkpoint();
    let current = lab.machine.disk_mut().clone();
    let shape = &mut lab.machine.disk_shapes_mut()[0];
    shape.base.as_mut().unwrap().files[0].modified_ns = 5_000_000_000;
    let error = lab.recorder.rollback(&mut lab.machine, one, &RollbackRequest::default()).unwrap_err();
    assert!(error.to_string().contains("was written since"), "{error}");
    assert!(matches!(error, Error::Machine(MachineError::Mismatch { .. })));
    assert!(*lab.machine.disk_mut() == current);
    // It is another disk from here on: whole, and under the same name.
    let mut fresh = Recorder::fresh(Arc::clone(&lab.store), lab.id).unwrap();
    let three = fresh.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap().record.id;
    assert_eq!(lab.store.catalogue().disks(lab.id).unwrap().len(), 2);
    assert!(lab.export(three) == current);
    lab.verify();
}

#[test]
fn old_contents_are_released_and_new_ones_kept() {
    let settings = RecorderSettings { retained_disk_states_max: 3, ..RecorderSettings::default() };
    let mut lab = Lab::new(settings.clone());
    let mut taken = Vec::new();
    for seed in 1..20 {
        lab.write(seed, seed as u64);
        taken.push((lab.checkpoint(), lab.machine.disk_mut().clone()));
        assert!(lab.machine.disk_snapshots() <= 4, "{}", lab.machine.disk_snapshots());
    }
    for (at, (id, image)) in taken.iter().enumerate().rev().step_by(3) {
        let written = lab.rollback(*id);
        assert!(lab.machine.disk_mut() == image, "{at}");
        assert_eq!(written > 0, at < 16, "{at}");
        lab.write(50, at as u64 + 1);
        let _branch = lab.checkpoint();
        assert!(lab.machine.disk_snapshots() <= 5, "{}", lab.machine.disk_snapshots());
    }
    // A new recorder releases what is stored, and nothing else.
    let stray = {
        lab.machine.pause().unwrap();
        let state = lab.machine.capture_state().unwrap();
        lab.machine.resume().unwrap();
        state.disks[0].clone()
    };
    let settings = RecorderSettings { retained_disk_states_max: 1, ..settings };
    lab.recorder = Recorder::with_settings(Arc::clone(&lab.store), lab.id, settings).unwrap();
    for _ in 0..3 {
        let _more = lab.checkpoint();
    }
    assert!(lab.machine.disk_snapshots() <= 3);
    assert!(lab.machine.retained_disks().unwrap().contains(&stray));
    lab.verify();
}

#[test]
fn disks_survive_many_checkpoints_and_full_maps() {
    let mut lab = Lab::new(RecorderSettings { retained_disk_states_max: 2, ..RecorderSettings::default() });
    let mut images = Vec::new();
    for turn in 0..150_usize {
        lab.write(turn * 13 % BLOCKS, turn as u64 + 1);
        let id = lab.checkpoint();
        if turn % 10 == 0 {
            images.push((id, lab.machine.disk_mut().clone()));
        }
    }
    let Lab { dir, store, machine, id, recorder } = lab;
    drop((recorder, store));
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    let recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let lab = Lab { dir, store, machine, id, recorder };
    for (id, image) in &images {
        assert!(lab.export(*id) == *image);
    }
    lab.verify();
}

#[test]
fn changed_lists_of_blocks_are_noticed() {
    let mut lab = Lab::new(RecorderSettings::default());
    lab.write(1, 1);
    let _one = lab.checkpoint();
    lab.write(2, 2);
    let two = lab.checkpoint();
    let Lab { dir, store, machine: _, id: _, recorder } = lab;
    drop((recorder, store));
    let sql = rusqlite::Connection::open(dir.path().join("catalogue.sqlite")).unwrap();
    assert_eq!(sql.execute("UPDATE block_version SET block = 5 WHERE block = 2", []).unwrap(), 1);
    drop(sql);
    let store = open(dir.path());
    let error = store.disk(two, "d0").err().unwrap();
    assert!(error.to_string().contains("changed blocks"), "{error}");
    let report = store.verify(&mut |_| ()).unwrap();
    assert!(
        report.damaged.iter().any(|damage| damage.what.contains("changed blocks")),
        "{:?}",
        report.damaged
    );
}

/// Actions on a machine.
#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64),
    Checkpoint,
    Rollback(usize),
    Undo,
    Forget,
    /// The store is opened again.
    Reopen,
    /// A new process, whose disk has any contents.
    Restore(usize),
    Prune(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..BLOCKS, 0_u64..40).prop_map(|(block, seed)| Step::Write(block, seed)),
        4 => Just(Step::Checkpoint),
        2 => any::<usize>().prop_map(Step::Rollback),
        1 => Just(Step::Undo),
        1 => Just(Step::Forget),
        1 => Just(Step::Reopen),
        1 => any::<usize>().prop_map(Step::Restore),
        1 => (0_u64..4).prop_map(Step::Prune),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_checkpoint_gives_its_disk_back_whatever_happens(steps in prop::collection::vec(step(), 1..40), keep in 1_usize..4) {
        let settings = RecorderSettings { retained_disk_states_max: keep, ..RecorderSettings::default() };
        let mut lab = Lab::new(settings.clone());
        let mut taken: Vec<(CheckpointId, Vec<u8>)> = Vec::new();
        for step in steps {
            match step {
                Step::Write(block, seed) => lab.write(block, seed),
                Step::Checkpoint => taken.push((lab.checkpoint(), lab.machine.disk_mut().clone())),
                Step::Rollback(number) => {
                    if let Some((id, image)) = taken.get(number % taken.len().max(1)).cloned() {
                        lab.rollback(id);
                        prop_assert!(*lab.machine.disk_mut() == image);
                    }
                }
                Step::Undo => {
                    match lab.recorder.undo(&mut lab.machine, &RollbackRequest::default()) {
                        Ok(report) => {
                            let expected = lab.export(report.target.id);
                            prop_assert!(*lab.machine.disk_mut() == expected);
                        }
                        Err(Error::Nothing { .. }) => {}
                        Err(error) if error.to_string().contains("was pruned") => {}
                        Err(error) => prop_assert!(false, "{error}"),
                    }
                }
                Step::Forget => lab.forget_all(),
                Step::Reopen => {
                    let Lab { dir, store, machine, id, recorder } = lab;
                    drop((recorder, store));
                    let store = open(dir.path());
                    let recorder = Recorder::with_settings(Arc::clone(&store), id, settings.clone()).unwrap();
                    lab = Lab { dir, store, machine, id, recorder };
                }
                Step::Prune(keep_last) => {
                    let policy = RetentionPolicy { keep_last, undo_depth: 0, ..RetentionPolicy::nothing() };
                    let plan = lab.store.plan_prune(&policy, None).unwrap();
                    let report = lab.store.prune(&plan, &CompactOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap();
                    prop_assert_eq!(report.compaction.contents_removed, plan.estimate.contents);
                    let left = lab.store.catalogue().checkpoints(lab.id).unwrap();
                    taken.retain(|(id, _)| left.iter().any(|record| record.id == *id));
                }
                Step::Restore(number) => {
                    if let Some((id, image)) = taken.get(number % taken.len().max(1)).cloned() {
                        lab.machine = machine();
                        lab.write(number % BLOCKS, number as u64);
                        lab.recorder.restore(&mut lab.machine, id, &RollbackRequest::default()).unwrap();
                        prop_assert!(*lab.machine.disk_mut() == image);
                        lab.machine.resume().unwrap();
                    }
                }
            }
        }
        for (id, image) in &taken {
            prop_assert!(lab.export(*id) == *image);
        }
        lab.verify();
    }
}
