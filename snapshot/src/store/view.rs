use std::sync::Arc;

use retrovisor_guest::{Gfn, MemoryError, MemoryLayout, MemoryView, Page, PageToken};

use super::opening::Store;
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::page_map::PageMap;

/// A checkpoint's memory, for reading. Shared between threads. Page tokens are numbers of contents: within one store
/// equal tokens mean equal bytes, across checkpoints and machines.
pub struct CheckpointView {
    store: Arc<Store>,
    map: Arc<PageMap>,
    layout: MemoryLayout,
    id: CheckpointId,
    name: String,
}

impl Store {
    /// A checkpoint's memory.
    pub fn view(self: &Arc<Self>, checkpoint: CheckpointId) -> Result<CheckpointView> {
        let record = self.catalogue().checkpoint(checkpoint)?;
        let layout = self.catalogue().machine_by_id(record.machine)?.identity.layout;
        Ok(CheckpointView {
            map: self.map(checkpoint)?,
            store: Arc::clone(self),
            layout,
            id: checkpoint,
            name: record.name,
        })
    }
}

impl CheckpointView {
    /// The content of a frame; `None` if it is not memory.
    #[must_use]
    pub fn content(&self, gfn: Gfn) -> Option<ContentRef> {
        let index = usize::try_from(self.layout.index(gfn)?).ok()?;
        Some(self.map.get(index))
    }
}

impl MemoryView for CheckpointView {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        match self.content(gfn) {
            None => Err(MemoryError::NotMemory { gpa: gfn.gpa() }),
            Some(ContentRef::Zero | ContentRef::Removed) => {
                into.fill(0);
                Ok(())
            }
            Some(ContentRef::Stored(id)) => {
                let page =
                    self.store.content(id).map_err(|error| match self.store.unless_gone(self.id, error) {
                        Error::Damaged(mut damage) => {
                            damage.checkpoints.push(self.name.clone());
                            damage.gfns.push(gfn);
                            MemoryError::Damaged(Error::Damaged(damage).to_string())
                        }
                        other => MemoryError::Damaged(other.to_string()),
                    })?;
                into.copy_from_slice(&page[..]);
                Ok(())
            }
        }
    }

    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        self.content(gfn).map(|content| match content {
            ContentRef::Removed => PageToken(ContentRef::Zero.code()),
            other => PageToken(other.code()),
        })
    }

    fn known_zero(&self, gfn: Gfn) -> bool {
        matches!(self.content(gfn), Some(ContentRef::Zero | ContentRef::Removed))
    }

    fn removed(&self, gfn: Gfn) -> bool {
        self.content(gfn) == Some(ContentRef::Removed)
    }
}
