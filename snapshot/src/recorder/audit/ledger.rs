use retrovisor_guest::PageSet;

/// For each frame, from which checkpoint on it is in doubt: the first that a mismatch found now would make doubtful. It
/// is the one after the last in which the frame is known to be exact.
///
/// A checkpoint is exact in a frame that was copied for it in the pause, or that was compared with it. A copy made
/// before the pause proves nothing: that the frame was not written again is what the driver says.
pub(super) struct Ledger {
    frames: u64,
    /// Sequence numbers, by index of the frame; those below `floor` count as `floor`.
    doubt_from: Vec<u32>,
    /// No frame is in doubt in checkpoints before this one.
    floor: u32,
}

impl Ledger {
    /// Nothing is known of the memory of checkpoints after `newest`; those up to it are not concerned.
    pub(super) fn new(frames: u64, newest: u64) -> Self {
        let length = usize::try_from(frames).unwrap_or(usize::MAX);
        Self { frames, doubt_from: vec![0; length], floor: number(newest + 1) }
    }

    /// The memory is that of the newest checkpoint, in every frame: it was compared or written.
    pub(super) fn reset(&mut self, newest: u64) {
        self.floor = number(newest + 1);
    }

    /// Frames were copied in the pause of a checkpoint.
    pub(super) fn copied(&mut self, sequence: u64, frames: &PageSet) {
        if frames.len() == self.frames {
            self.floor = number(sequence + 1);
        } else {
            frames.indices().for_each(|index| self.set(index, sequence + 1));
        }
    }

    /// The frame is what the checkpoint says.
    pub(super) fn proven(&mut self, index: u64, sequence: u64) {
        self.set(index, sequence + 1);
    }

    /// The first checkpoint that is doubtful if the frame is not what the newest one says.
    pub(super) fn doubt_from(&self, index: u64) -> u64 {
        let at = usize::try_from(index).ok().and_then(|index| self.doubt_from.get(index));
        u64::from(at.map_or(self.floor, |sequence| self.floor.max(*sequence)))
    }

    fn set(&mut self, index: u64, sequence: u64) {
        if let Some(at) = usize::try_from(index).ok().and_then(|index| self.doubt_from.get_mut(index)) {
            *at = number(sequence);
        }
    }
}

/// Half the memory of a sequence number: nobody takes four thousand million checkpoints of a machine.
fn number(sequence: u64) -> u32 {
    u32::try_from(sequence).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use retrovisor_guest::{MemoryLayout, PAGE_SIZE};

    use super::*;

    const FRAMES: usize = 6;

    #[derive(Clone, Debug)]
    enum Step {
        /// The frame changes, and the driver reports it.
        Reported(usize),
        /// It changes, and the driver does not report it.
        Unreported(usize),
        /// A checkpoint. Dirty frames are copied before the pause where `before` says so, and in it otherwise. A frame
        /// may change between that, unreported. One frame is compared.
        Checkpoint { before: Vec<bool>, changes: Option<usize>, compared: usize },
        /// A checkpoint that looks at every frame.
        Full,
    }

    fn step() -> impl Strategy<Value = Step> {
        let frame = || 0..FRAMES;
        prop_oneof![
            3 => frame().prop_map(Step::Reported),
            1 => frame().prop_map(Step::Unreported),
            6 => (prop::collection::vec(any::<bool>(), FRAMES), prop::option::weighted(0.1, frame()), frame())
                .prop_map(|(before, changes, compared)| Step::Checkpoint { before, changes, compared }),
            1 => Just(Step::Full),
        ]
    }

    proptest! {
        /// The range begins right after the last checkpoint that is known to be exact in the frame, and has every one
        /// since that is not.
        #[test]
        fn the_range_of_a_mismatch_begins_where_exactness_was_known_last(
            steps in prop::collection::vec(step(), 1..60),
        ) {
            let layout = MemoryLayout::flat((FRAMES * PAGE_SIZE) as u64).unwrap();
            let mut ledger = Ledger::new(FRAMES as u64, 0);
            let (mut memory, mut stored, mut next) = ([0_u32; FRAMES], [0_u32; FRAMES], 0);
            let mut dirty = PageSet::full(&layout);
            // For each checkpoint from number 1 on: whether it is exact in each frame.
            let mut exact: Vec<[bool; FRAMES]> = Vec::new();
            // And whether that is known.
            let mut known: Vec<[bool; FRAMES]> = Vec::new();
            for step in steps {
                match step {
                    Step::Reported(frame) => {
                        next += 1;
                        memory[frame] = next;
                        dirty.insert_index(frame as u64);
                    }
                    Step::Unreported(frame) => {
                        next += 1;
                        memory[frame] = next;
                    }
                    Step::Full => dirty = PageSet::full(&layout),
                    Step::Checkpoint { before, changes, compared } => {
                        let mut copied = PageSet::empty(&layout);
                        for index in dirty.indices() {
                            let frame = usize::try_from(index).unwrap();
                            if before[frame] {
                                stored[frame] = memory[frame];
                            } else {
                                copied.insert_index(index);
                            }
                        }
                        if let Some(frame) = changes {
                            next += 1;
                            memory[frame] = next;
                        }
                        for index in copied.indices() {
                            let frame = usize::try_from(index).unwrap();
                            stored[frame] = memory[frame];
                        }
                        exact.push(std::array::from_fn(|frame| stored[frame] == memory[frame]));
                        known.push(std::array::from_fn(|frame| {
                            copied.contains_index(frame as u64)
                                || frame == compared && stored[frame] == memory[frame]
                        }));
                        let sequence = exact.len() as u64;
                        ledger.copied(sequence, &copied);
                        dirty = PageSet::empty(&layout);
                        if stored[compared] == memory[compared] {
                            ledger.proven(compared as u64, sequence);
                            continue;
                        }
                        let from = ledger.doubt_from(compared as u64);
                        let last = |of: &[[bool; FRAMES]]| {
                            of.iter().rposition(|frames| frames[compared]).map_or(0, |at| at as u64 + 1)
                        };
                        prop_assert_eq!(from, last(&known) + 1);
                        prop_assert!(from <= sequence && from <= last(&exact) + 1);
                    }
                }
            }
        }
    }

    #[test]
    fn a_memory_that_was_replaced_concerns_no_earlier_checkpoint() {
        let layout = MemoryLayout::flat((FRAMES * PAGE_SIZE) as u64).unwrap();
        let mut ledger = Ledger::new(FRAMES as u64, 7);
        assert_eq!(ledger.doubt_from(2), 8);
        ledger.copied(8, &PageSet::full(&layout));
        assert_eq!(ledger.doubt_from(2), 9);
        ledger.proven(2, 10);
        assert_eq!((ledger.doubt_from(2), ledger.doubt_from(3)), (11, 9));
        ledger.reset(12);
        assert_eq!((ledger.doubt_from(2), ledger.doubt_from(3)), (13, 13));
    }
}
