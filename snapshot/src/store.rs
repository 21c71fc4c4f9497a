use std::path::Path;
use std::sync::Arc;

use retrovisor_guest::{
    Gfn, MachineState, MemoryError, MemoryLayout, MemoryView, Page, PageToken, VcpuRegisters,
};

use crate::catalogue::Catalogue;
use crate::content::ContentRef;
use crate::damage::Damage;
use crate::error::Result;
use crate::id::CheckpointId;

/// How a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For writing; made when there is none.
    Create,
    /// For writing. Only one process at a time can.
    ReadWrite,
    /// For reading, also while another process writes.
    ReadOnly,
}

/// A snapshot store: one directory with the catalogue, the packs, the key and the lock.
pub struct Store {
    catalogue: Catalogue,
}

/// A frame that differs between two checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageChange {
    /// The frame.
    pub gfn: Gfn,
    /// What stood there in the first.
    pub before: ContentRef,
    /// What stands there in the second.
    pub after: ContentRef,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Contents checked.
    pub pages_done: u64,
    /// Contents in all.
    pub pages_total: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Contents read and hashed.
    pub pages_checked: u64,
    /// Bytes read from packs.
    pub bytes: u64,
    /// Checkpoints whose page maps and states were checked.
    pub checkpoints_checked: u64,
    /// All that is not what was written.
    pub damaged: Vec<Damage>,
}

/// A checkpoint's memory, to be read.
pub struct CheckpointView;

#[expect(clippy::todo, unused_variables, reason = "the bodies follow in the next commits")]
impl Store {
    /// Opens the store in a directory.
    pub fn open(dir: &Path, access: Access) -> Result<Self> {
        todo!()
    }

    /// The catalogue.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// A checkpoint's memory.
    pub fn view(self: &Arc<Self>, checkpoint: CheckpointId) -> Result<CheckpointView> {
        todo!()
    }

    /// Everything of a checkpoint but memory.
    pub fn state(&self, checkpoint: CheckpointId) -> Result<MachineState> {
        todo!()
    }

    /// The registers at a checkpoint, without reading the driver's sections.
    pub fn registers(&self, checkpoint: CheckpointId) -> Result<Vec<VcpuRegisters>> {
        todo!()
    }

    /// The hash of all pages of a checkpoint in order, the same that [`image_hash`] computes of a view.
    pub fn image_hash(&self, checkpoint: CheckpointId) -> Result<blake3::Hash> {
        todo!()
    }

    /// The frames that differ between two checkpoints of machines of one layout, ascending.
    pub fn changed(&self, a: CheckpointId, b: CheckpointId) -> Result<Vec<PageChange>> {
        todo!()
    }

    /// Checks the catalogue, every content in the packs, every page map and every state.
    pub fn verify(&self, progress: &mut dyn FnMut(VerifyProgress)) -> Result<VerifyReport> {
        todo!()
    }

    /// Bytes on the disk: packs and catalogue.
    pub fn size(&self) -> Result<u64> {
        todo!()
    }
}

/// The hash of all pages of a view in order of index, zero and removed ones as zeros.
#[expect(clippy::todo, unused_variables, reason = "the bodies follow in the next commits")]
pub fn image_hash(view: &dyn MemoryView) -> Result<blake3::Hash, MemoryError> {
    todo!()
}

#[expect(clippy::todo, unused_variables, reason = "the bodies follow in the next commits")]
impl MemoryView for CheckpointView {
    fn layout(&self) -> &MemoryLayout {
        todo!()
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        todo!()
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        todo!()
    }
}
