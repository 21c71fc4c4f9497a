use retrovisor_guest::{Machine, MachineError, MemoryLayout, PageSet};

/// A consumer of dirty frames: queries which were written since its last query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer(usize);

/// Dirty frames for several consumers. A driver reports each write once; this records it for every consumer, each of
/// which begins new epochs independently.
pub struct DirtyEpochs {
    written: Vec<PageSet>,
    layout: MemoryLayout,
}

impl DirtyEpochs {
    /// Without any consumer.
    #[must_use]
    pub fn new(layout: &MemoryLayout) -> Self {
        Self { written: Vec::new(), layout: layout.clone() }
    }

    /// Adds a consumer, for which every frame is written.
    pub fn join(&mut self) -> Consumer {
        self.written.push(PageSet::full(&self.layout));
        Consumer(self.written.len() - 1)
    }

    /// Takes the frames written since the last call from the machine, for every consumer. They are left in `found`.
    pub fn collect(&mut self, machine: &mut dyn Machine, found: &mut PageSet) -> Result<(), MachineError> {
        found.clear();
        let taken = machine.take_dirty(found);
        // Also what a call that failed has reported.
        self.note(found);
        taken
    }

    /// Frames that were not written by the guest, but by a rollback or an injected fault.
    pub fn note(&mut self, frames: &PageSet) {
        for written in &mut self.written {
            written.union(frames);
        }
    }

    /// Anything may have been written: the memory was replaced.
    pub fn note_all(&mut self) {
        for written in &mut self.written {
            *written = PageSet::full(&self.layout);
        }
    }

    /// What was written since the consumer's epoch began.
    #[must_use]
    pub fn written(&self, consumer: Consumer) -> &PageSet {
        &self.written[consumer.0]
    }

    /// Begins a new epoch for one consumer, and returns the frames of the last one.
    pub fn take(&mut self, consumer: Consumer) -> PageSet {
        std::mem::replace(&mut self.written[consumer.0], PageSet::empty(&self.layout))
    }

    /// Returns frames to a consumer that could not use them.
    pub fn give_back(&mut self, consumer: Consumer, frames: &PageSet) {
        self.written[consumer.0].union(frames);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use retrovisor_guest::{Gpa, PAGE_SIZE};
    use retrovisor_scripted::MemoryMachine;

    use super::*;

    const PAGES: u64 = 100;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64),
        Collect,
        Note(u64),
        Join,
        Take(usize),
        GiveBackLast,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..PAGES).prop_map(Step::Write),
            3 => Just(Step::Collect),
            1 => (0..PAGES).prop_map(Step::Note),
            1 => Just(Step::Join),
            3 => any::<usize>().prop_map(Step::Take),
            1 => Just(Step::GiveBackLast),
        ]
    }

    fn indices(set: &PageSet) -> BTreeSet<u64> {
        set.indices().collect()
    }

    proptest! {
        #[test]
        fn everyone_sees_every_write_since_their_last_look(steps in prop::collection::vec(step(), 0..200)) {
            let layout = MemoryLayout::flat(PAGES * PAGE_SIZE as u64).unwrap();
            let mut machine = MemoryMachine::new("m", layout.clone()).unwrap();
            let mut epochs = DirtyEpochs::new(&layout);
            let mut found = PageSet::empty(&layout);
            epochs.collect(&mut machine, &mut found).unwrap();
            let mut model: Vec<(Consumer, BTreeSet<u64>)> = Vec::new();
            let mut written = BTreeSet::new();
            let mut last: Option<(usize, PageSet)> = None;
            for step in steps {
                match step {
                    Step::Write(page) => {
                        machine.poke(Gpa(page * PAGE_SIZE as u64 + 7), b"x").unwrap();
                        written.insert(page);
                    }
                    Step::Collect => {
                        epochs.collect(&mut machine, &mut found).unwrap();
                        prop_assert_eq!(indices(&found), written.clone());
                        for (_, seen) in &mut model {
                            seen.extend(&written);
                        }
                        written.clear();
                    }
                    Step::Note(page) => {
                        let mut frames = PageSet::empty(&layout);
                        frames.insert_index(page);
                        epochs.note(&frames);
                        for (_, seen) in &mut model {
                            seen.insert(page);
                        }
                    }
                    Step::Join => model.push((epochs.join(), (0..PAGES).collect())),
                    Step::Take(which) if !model.is_empty() => {
                        let which = which % model.len();
                        let (consumer, expected) = &mut model[which];
                        let frames = epochs.take(*consumer);
                        prop_assert_eq!(indices(&frames), std::mem::take(expected));
                        last = Some((which, frames));
                    }
                    Step::GiveBackLast => if let Some((which, frames)) = last.take() {
                        epochs.give_back(model[which].0, &frames);
                        model[which].1.extend(frames.indices());
                    },
                    Step::Take(_) => (),
                }
                for (consumer, expected) in &model {
                    prop_assert_eq!(&indices(epochs.written(*consumer)), expected);
                }
            }
        }
    }
}
