use retrovisor_guest::{MachineState, MemoryLayout, PageSet};

use super::insert;
use crate::kvm::worker::message::StateHead;

/// The data in a worker's reply to `Pause`, returned on request as long as the machine is paused.
pub(super) struct PauseReply {
    /// Frames that were received and not returned yet; also those of earlier pauses.
    dirty: PageSet,
    /// Whether `dirty` is complete.
    is_complete: bool,
    /// Until it is returned; then the caller releases it.
    state: Option<MachineState>,
}

impl PauseReply {
    /// Nothing was received.
    pub(super) fn empty(layout: &MemoryLayout) -> Self {
        Self { dirty: PageSet::empty(layout), is_complete: false, state: None }
    }

    /// Stores a reply: this many bytes of dirty frames, if any, and the sections of a state; `None` when they are
    /// inconsistent.
    pub(super) fn store(
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
        self.is_complete = dirty_bytes.is_some();
        self.state = state;
        Some(())
    }

    /// Returns the dirty frames that were received; `false`: there may be more.
    pub(super) fn take_dirty(&mut self, into: &mut PageSet) -> bool {
        into.union(&self.dirty);
        self.dirty.clear();
        self.is_complete
    }

    /// Returns the state, once.
    pub(super) fn take_state(&mut self) -> Option<MachineState> {
        self.state.take()
    }

    /// The machine changes: returns the unrequested state, for release.
    pub(super) fn discard(&mut self) -> Option<MachineState> {
        self.is_complete = false;
        self.state.take()
    }
}
