use retrovisor_guest::{MachineState, MemoryLayout, PageSet};

use super::insert;
use crate::kvm::worker::message::StateHead;

/// What a worker told of its machine when it came to a stand: it is given to those who ask for it as long as it stands so.
pub(super) struct Stand {
    /// Frames that were told and not asked for yet; also those of earlier stands.
    dirty: PageSet,
    /// Whether `dirty` is all there is.
    knows_dirty: bool,
    /// Until it is asked for: whoever has it lets go of it.
    state: Option<MachineState>,
}

impl Stand {
    /// Nothing is known.
    pub(super) fn unknown(layout: &MemoryLayout) -> Self {
        Self { dirty: PageSet::empty(layout), knows_dirty: false, state: None }
    }

    /// Takes note of an answer: so many bytes of dirty frames, if any, and the sections of a state; `None` when they do not fit.
    pub(super) fn told(
        &mut self,
        dirty_bytes: Option<u32>,
        head: Option<StateHead>,
        body: &[u8],
        vcpus: usize,
    ) -> Option<()> {
        let (dirty, sections) = body.split_at_checked(usize::try_from(dirty_bytes.unwrap_or(0)).ok()?)?;
        let state = match head {
            Some(head) => Some(head.join(sections).filter(|state| state.vcpus.len() == vcpus)?),
            None if sections.is_empty() => None,
            None => return None,
        };
        insert(&mut self.dirty, dirty)?;
        self.knows_dirty = dirty_bytes.is_some();
        self.state = state;
        Some(())
    }

    /// Hands over what is known of dirty frames; `false`: there may be more.
    pub(super) fn give_dirty(&mut self, into: &mut PageSet) -> bool {
        into.union(&self.dirty);
        self.dirty.clear();
        self.knows_dirty
    }

    /// The state, once.
    pub(super) fn take_state(&mut self) -> Option<MachineState> {
        self.state.take()
    }

    /// It stands so no more: the state that nobody asked for, to be let go of.
    pub(super) fn end(&mut self) -> Option<MachineState> {
        self.knows_dirty = false;
        self.state.take()
    }
}
