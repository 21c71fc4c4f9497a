//! Opens a store after a crash and compares it with a model of full images.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use retrovisor_guest::{Gfn, Machine as _, MemoryView as _, PAGE_SIZE};
use retrovisor_snapshot::{CheckpointId, CheckpointRequest, ContentRef, Recorder, RollbackRequest, Store};

use super::random::Random;
use super::story::{Mark, PAGES, open, scribble, toy};
use crate::toy::{Frame, Image};

/// The reports up to some moment.
#[derive(Clone, Default)]
pub(super) struct Expected {
    /// A machine was added.
    pub(super) machine: bool,
    /// The checkpoints that are durable, and their contents.
    pub(super) done: BTreeMap<CheckpointId, Arc<Image>>,
    /// The operation in progress.
    trying: BTreeMap<u64, Arc<Image>>,
    /// An operation that failed: a checkpoint may exist (a rollback can fail after it took its checkpoint).
    failed: Vec<Arc<Image>>,
    /// Checkpoints that may have been removed.
    pruned: BTreeMap<CheckpointId, Arc<Image>>,
}

impl Expected {
    pub(super) fn hear(&mut self, mark: &Mark) {
        match mark {
            Mark::Machine => self.machine = true,
            Mark::Try(number, image) => {
                self.trying.insert(*number, Arc::clone(image));
            }
            Mark::Done(number, id) => {
                let image = self.trying.remove(number).unwrap();
                let known = self.done.contains_key(id) || self.pruned.contains_key(id);
                assert!(!known, "a number is given twice");
                self.done.insert(*id, image);
            }
            Mark::Failed(number, _) => self.failed.extend(self.trying.remove(number)),
            Mark::Prune(ids) => {
                self.pruned.extend(ids.iter().filter_map(|id| self.done.remove_entry(id)));
            }
            Mark::Refused(_) | Mark::Space => (),
        }
    }
}

/// Panics when the store in `dir` is not as the model requires.
pub(super) fn check(dir: &Path, expected: &Expected, seed: u64) {
    let store = open(dir).unwrap();
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    let machines = store.catalogue().machines().unwrap();
    let Some(machine) = machines.first().map(|machine| machine.id) else {
        assert!(!expected.machine, "the machine is gone");
        return;
    };
    let there = store.catalogue().checkpoints(machine).unwrap();
    for (id, image) in &expected.done {
        assert!(there.iter().any(|record| record.id == *id), "checkpoint {} is gone", id.0);
        assert_holds(&store, *id, image);
    }
    // A checkpoint that was not reported must be complete as well.
    for record in there.iter().filter(|record| !expected.done.contains_key(&record.id)) {
        if let Some(image) = expected.pruned.get(&record.id) {
            assert_holds(&store, record.id, image);
            continue;
        }
        let mut candidates = expected.trying.values().chain(&expected.failed);
        let holds = candidates.any(|image| holds(&store, record.id, image).is_none());
        assert!(holds, "checkpoint {} is nothing that was tried", record.id.0);
    }
    // The machine is restored, and continues.
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    let mut toy = toy();
    let request = RollbackRequest::default();
    let Some(position) = recorder.position() else {
        assert!(expected.done.is_empty(), "the machine has no position");
        return;
    };
    recorder.restore(&mut toy, position.checkpoint, &request).unwrap();
    assert_holds(&store, position.checkpoint, &toy.image);
    toy.resume().unwrap();
    let mut random = Random::new(seed);
    scribble(&mut toy, &mut random);
    let next = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap().record;
    let expected = toy.image.clone();
    assert_holds(&store, next.id, &expected);
    let target = &there[random.index(there.len())];
    scribble(&mut toy, &mut random);
    let current = toy.image.clone();
    let report = recorder.rollback(&mut toy, target.id, &request).unwrap();
    assert_holds(&store, target.id, &toy.image);
    assert_holds(&store, report.current.unwrap().id, &current);
    assert_holds(&store, next.id, &expected);
    drop((recorder, store));
    // Data written after the crash are as safe as earlier data.
    let store = open(dir).unwrap();
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    assert_holds(&store, next.id, &expected);
}

pub(super) fn assert_holds(store: &Arc<Store>, id: CheckpointId, image: &Image) {
    if let Some(why) = holds(store, id, image) {
        panic!("checkpoint {}: {why}", id.0);
    }
}

/// Describes how a checkpoint differs from the image.
fn holds(store: &Arc<Store>, id: CheckpointId, image: &Image) -> Option<String> {
    let view = match store.view(id) {
        Ok(view) => view,
        Err(error) => return Some(error.to_string()),
    };
    let mut found = [0; PAGE_SIZE];
    for (index, frame) in (0..PAGES).zip(&image.frames) {
        let gfn = Gfn(index);
        if let Err(error) = view.read_page(gfn, &mut found) {
            return Some(error.to_string());
        }
        let same = match frame {
            Frame::Zero => view.content(gfn) == Some(ContentRef::Zero),
            Frame::Removed => view.content(gfn) == Some(ContentRef::Removed),
            Frame::Data(page) => **page == found,
        };
        if !same {
            return Some(format!("page {index} is another one"));
        }
    }
    match store.state(id) {
        Err(error) => Some(error.to_string()),
        Ok(state) if state.vcpus != [image.registers.clone()] => Some("the registers are others".into()),
        Ok(state) if state.sections[0].bytes != image.device => {
            Some("the device state is another one".into())
        }
        Ok(_) => None,
    }
}
