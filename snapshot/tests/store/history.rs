//! Random histories compared with a model: every checkpoint has exactly the captured contents, whatever happened since.

use std::sync::Arc;

use proptest::prelude::*;
use retrovisor_guest::{Gpa, Machine, MemoryLayout, MemorySlot, MemoryView, PAGE_SIZE};
use retrovisor_snapshot::{
    Access, CheckpointId, CheckpointRequest, CurrentPolicy, Error, Recorder, RollbackRequest, Store,
    image_hash,
};

use crate::toy::{Frame, Image, Toy};

const PAGES: usize = 200;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64),
    Zero(usize),
    Remove(usize),
    Registers(u64),
    Device(Vec<u8>),
    Checkpoint,
    Rollback(usize),
    Undo,
    Redo,
    Restore(usize),
    Reopen,
    FailedCheckpoint(u8),
    Restless(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        // Few seeds, so that contents repeat.
        12 => (0..PAGES, 0_u64..40).prop_map(|(page, seed)| Step::Write(page, seed)),
        2 => (0..PAGES).prop_map(Step::Zero),
        2 => (0..PAGES).prop_map(Step::Remove),
        1 => any::<u64>().prop_map(Step::Registers),
        1 => prop::collection::vec(any::<u8>(), 0..10_000).prop_map(Step::Device),
        6 => Just(Step::Checkpoint),
        2 => any::<usize>().prop_map(Step::Rollback),
        2 => Just(Step::Undo),
        1 => Just(Step::Redo),
        1 => any::<usize>().prop_map(Step::Restore),
        1 => Just(Step::Reopen),
        1 => (0_u8..2).prop_map(Step::FailedCheckpoint),
        1 => (0_u64..3).prop_map(Step::Restless),
    ]
}

/// The state of the model.
#[derive(Default)]
struct Model {
    kept: Vec<(CheckpointId, Image)>,
    undo: Vec<CheckpointId>,
    redo: Vec<CheckpointId>,
}

impl Model {
    fn image(&self, id: CheckpointId) -> &Image {
        &self.kept.iter().find(|(kept, _)| *kept == id).unwrap().1
    }

    fn pick(&self, any: usize) -> Option<CheckpointId> {
        (!self.kept.is_empty()).then(|| self.kept[any % self.kept.len()].0)
    }
}

fn layout() -> MemoryLayout {
    let slot = |gpa, pages: usize| MemorySlot { gpa: Gpa(gpa), length_bytes: (pages * PAGE_SIZE) as u64 };
    MemoryLayout::new(vec![slot(0, 150), slot(4 << 30, 50)]).unwrap()
}

fn run(steps: Vec<Step>) {
    let dir = crate::toy::quick_dir();
    let mut store = crate::toy::open(dir.path());
    let mut toy = Toy::new(&layout());
    let machine = store.catalogue().add_machine(&toy.identity).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    let mut model = Model::default();
    let request = RollbackRequest::default();
    for step in steps {
        match step {
            Step::Write(page, seed) => toy.scribble(page, seed),
            Step::Zero(page) => toy.set(page, Frame::Zero),
            Step::Remove(page) => toy.set(page, Frame::Removed),
            Step::Registers(rip) => toy.image.registers.rip = rip,
            Step::Device(bytes) => toy.image.device = bytes,
            Step::Restless(seed) => toy.restless = seed,
            Step::Checkpoint => {
                let report = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap();
                model.kept.push((report.record.id, toy.captured.clone().unwrap()));
            }
            Step::FailedCheckpoint(which) => {
                if which == 0 {
                    toy.faults.take_dirty = 1;
                } else {
                    toy.faults.capture_state = 1;
                }
                recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap_err();
            }
            Step::Rollback(any) => {
                let Some(target) = model.pick(any) else { continue };
                let current = if any % 3 == 0 { CurrentPolicy::Staged } else { CurrentPolicy::Durable };
                let request = RollbackRequest { current, ..RollbackRequest::default() };
                let report = recorder.rollback(&mut toy, target, &request).unwrap();
                let current = report.current.unwrap().id;
                model.kept.push((current, toy.captured.clone().unwrap()));
                model.undo.push(current);
                model.redo.clear();
                assert_eq!(&toy.image, model.image(target));
            }
            Step::Undo | Step::Redo => {
                let is_undo = matches!(step, Step::Undo);
                let (from, to) = if is_undo {
                    (&mut model.undo, &mut model.redo)
                } else {
                    (&mut model.redo, &mut model.undo)
                };
                let expected = from.pop();
                let done = if is_undo {
                    recorder.undo(&mut toy, &request)
                } else {
                    recorder.redo(&mut toy, &request)
                };
                let Some(target) = expected else {
                    assert!(matches!(done, Err(Error::Nothing { .. })), "{done:?}");
                    continue;
                };
                let report = done.unwrap();
                assert_eq!(report.target.id, target);
                let current = report.current.unwrap().id;
                to.push(current);
                model.kept.push((current, toy.captured.clone().unwrap()));
                assert_eq!(&toy.image, model.image(target));
            }
            Step::Restore(any) => {
                let Some(target) = model.pick(any) else { continue };
                let position = recorder.position().unwrap().checkpoint;
                // A new process: its memory has any contents.
                toy = Toy::new(&layout());
                toy.scribble(any % PAGES, 99);
                recorder.restore(&mut toy, target, &request).unwrap();
                model.undo.push(position);
                model.redo.clear();
                assert!(toy.paused);
                assert_eq!(&toy.image, model.image(target));
                toy.resume().unwrap();
            }
            Step::Reopen => {
                drop(recorder);
                drop(store);
                store = crate::toy::open(dir.path());
                recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
            }
        }
        assert!(!toy.paused);
    }
    check(&store, &model);
    drop(recorder);
    drop(store);
    // Nothing of it was only in memory.
    check(&Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap()), &model);
}

fn check(store: &Arc<Store>, model: &Model) {
    for (id, image) in &model.kept {
        let view = store.view(*id).unwrap();
        let mut page = [0; PAGE_SIZE];
        for (gfn, frame) in view.layout().gfns().zip(&image.frames) {
            view.read_page(gfn, &mut page).unwrap();
            match frame {
                Frame::Data(data) => assert_eq!(page, **data),
                Frame::Zero => assert!(page == [0; PAGE_SIZE] && view.known_zero(gfn) && !view.removed(gfn)),
                Frame::Removed => {
                    assert!(page == [0; PAGE_SIZE] && view.known_zero(gfn) && view.removed(gfn));
                }
            }
        }
        let state = store.state(*id).unwrap();
        assert_eq!(state.vcpus, std::slice::from_ref(&image.registers));
        assert_eq!(store.registers(*id).unwrap(), state.vcpus);
        assert_eq!(state.sections[0].bytes, image.device);
        assert_eq!(store.image_hash(*id).unwrap(), image_hash(&view).unwrap());
    }
    let report = store.verify(&mut |_| ()).unwrap();
    assert_eq!(report.damaged, []);
    assert_eq!(report.checkpoints_checked, model.kept.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_checkpoint_gives_back_what_stood_there(steps in prop::collection::vec(step(), 1..120)) {
        run(steps);
    }
}

#[test]
fn more_than_one_keyframe_in_a_chain() {
    let steps = (0..200).flat_map(|at: u64| {
        let page = usize::try_from(at % 190).unwrap();
        [Step::Write(page, at), Step::Write(page + 7, at / 3), Step::Checkpoint]
    });
    run(steps.collect());
}

#[test]
fn a_big_machine_that_never_rests_is_copied_before_the_pause() {
    const PAGES: u64 = 9_000;
    let mut lab = crate::toy::Lab::new(PAGES);
    for page in (0..9_000).step_by(3) {
        lab.toy.scribble(page, page as u64);
    }
    lab.toy.restless = 5;
    let report = lab.recorder.checkpoint(&mut lab.toy, &CheckpointRequest::default()).unwrap();
    assert!(report.timing.precopy_us > 0);
    assert_eq!(report.record.dirty_pages, PAGES);
    lab.toy.image = lab.toy.captured.clone().unwrap();
    assert_eq!(lab.store.image_hash(report.record.id).unwrap(), image_hash(&lab.toy).unwrap());

    // Data stored before a capture that failed are gone; the guest's data are not.
    let mut recorder = Recorder::new(lab.store.clone(), lab.machine).unwrap();
    lab.toy.scribble(1, 77);
    let packs = std::fs::metadata(lab.dir.path().join("packs/000001.pack")).unwrap().len();
    lab.toy.faults.capture_state = 1;
    recorder.checkpoint(&mut lab.toy, &CheckpointRequest::default()).unwrap_err();
    assert_eq!(std::fs::metadata(lab.dir.path().join("packs/000001.pack")).unwrap().len(), packs);
    let next = recorder.checkpoint(&mut lab.toy, &CheckpointRequest::default()).unwrap().record;
    lab.toy.image = lab.toy.captured.clone().unwrap();
    assert_eq!(lab.store.image_hash(next.id).unwrap(), image_hash(&lab.toy).unwrap());
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);
}
