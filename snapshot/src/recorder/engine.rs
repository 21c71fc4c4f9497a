use std::sync::Arc;

use retrovisor_guest::{Machine, MachineError, MemoryLayout, PageSet};

use super::staging::Staging;
use crate::catalogue::Position;
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::page_map::PageMap;
use crate::store::Store;

/// Takes checkpoints of one machine and brings it back. Blocks the calling thread; one a machine.
pub struct Recorder {
    pub(super) store: Arc<Store>,
    pub(super) machine: MachineId,
    pub(super) name: String,
    pub(super) layout: MemoryLayout,
    pub(super) stand: Stand,
    /// Frames that may differ from what is stored at `stand`: dirty ones that no checkpoint has yet.
    pub(super) unsaved: PageSet,
    pub(super) staging: Staging,
}

/// Where the machine stands, and what the store has in its frames there.
#[derive(Clone)]
pub(super) struct Stand {
    pub(super) position: Option<Position>,
    pub(super) map: Arc<PageMap>,
    pub(super) keyframe_distance: u64,
    pub(super) keyframe_rows: u64,
}

impl Recorder {
    /// A recorder for a machine of the store. It knows nothing of the machine's memory yet: its first checkpoint
    /// looks at every frame.
    pub fn new(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        let record = store.catalogue().machine_by_id(machine)?;
        let layout = record.identity.layout;
        let pages = usize::try_from(layout.pages()).unwrap_or(usize::MAX);
        let stand = match record.position {
            Some(position) => Stand::at(&store, position)?,
            None => Stand::nowhere(pages),
        };
        let unsaved = PageSet::full(&layout);
        Ok(Self { store, machine, name: record.name, layout, stand, unsaved, staging: Staging::default() })
    }

    /// A recorder for a machine that was started afresh: its first checkpoint has no parent and begins a timeline.
    pub fn fresh(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        let mut recorder = Self::new(store, machine)?;
        recorder.stand = Stand::nowhere(usize::try_from(recorder.layout.pages()).unwrap_or(usize::MAX));
        Ok(recorder)
    }

    /// Tells of frames that somebody but the guest wrote (a fault that was injected): they are in the next checkpoint.
    pub fn note_written(&mut self, frames: &PageSet) {
        self.unsaved.union(frames);
    }

    /// Where the machine stands.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.stand.position
    }

    /// The store it writes to.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The machine given is the one recorded: same memory. A driver may have been started anew under another version.
    pub(super) fn check(&self, machine: &dyn Machine) -> Result<()> {
        let layout = &machine.identity().layout;
        if *layout == self.layout {
            return Ok(());
        }
        Err(Error::Machine(MachineError::Mismatch {
            what: format!("memory of {}", self.name),
            expected: format!("{} pages in {} slots", self.layout.pages(), self.layout.slots().len()),
            found: format!("{} pages in {} slots", layout.pages(), layout.slots().len()),
        }))
    }
}

impl Stand {
    /// Before the first checkpoint: the store has nothing in any frame.
    fn nowhere(pages: usize) -> Self {
        Self { position: None, map: Arc::new(PageMap::zero(pages)), keyframe_distance: 0, keyframe_rows: 0 }
    }

    /// At a checkpoint of the store.
    pub(super) fn at(store: &Store, position: Position) -> Result<Self> {
        let link = store.catalogue().link(position.checkpoint)?;
        Ok(Self {
            position: Some(position),
            map: store.map(position.checkpoint)?,
            keyframe_distance: link.keyframe_distance,
            keyframe_rows: link.keyframe_rows,
        })
    }
}
