use retrovisor_guest::{Machine, MachineError, MemoryLayout, PageSet};

/// Somebody who wants to know which frames were written since they looked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer(usize);

/// Dirty frames for several consumers. A driver tells each write once; here it is kept for everyone, and each starts a
/// new epoch on their own. Nobody takes another's bits.
pub struct DirtyEpochs {
    written: Vec<PageSet>,
    layout: MemoryLayout,
}

impl DirtyEpochs {
    /// Nobody looks yet.
    #[must_use]
    pub fn new(layout: &MemoryLayout) -> Self {
        Self { written: Vec::new(), layout: layout.clone() }
    }

    /// A new consumer, who has seen nothing: to them, every frame is written.
    pub fn join(&mut self) -> Consumer {
        self.written.push(PageSet::full(&self.layout));
        Consumer(self.written.len() - 1)
    }

    /// Asks the machine what was written since it was asked last, for everyone. Those frames are left in `found`.
    pub fn collect(&mut self, machine: &mut dyn Machine, found: &mut PageSet) -> Result<(), MachineError> {
        found.clear();
        let taken = machine.take_dirty(found);
        // Also of what an answer that failed has told already.
        self.note(found);
        taken
    }

    /// Frames that somebody but the guest wrote: a rollback, an injected fault.
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

    /// Begins a new epoch for one consumer; the frames of the last one are handed over.
    pub fn take(&mut self, consumer: Consumer) -> PageSet {
        std::mem::replace(&mut self.written[consumer.0], PageSet::empty(&self.layout))
    }

    /// Gives frames back to a consumer who could not use them after all.
    pub fn give_back(&mut self, consumer: Consumer, frames: &PageSet) {
        self.written[consumer.0].union(frames);
    }
}
