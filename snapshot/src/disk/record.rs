use retrovisor_guest::{DiskBase, DiskShape};

use crate::id::{DiskId, MachineId};

/// A disk of a machine. One with another base image than before is another disk of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Its number in the store.
    pub id: DiskId,
    /// The machine.
    pub machine: MachineId,
    /// Its name in the machine: `d0`.
    pub name: String,
    /// Its size in bytes, as the guest sees it.
    pub size_bytes: u64,
    /// Its base image; blocks that were never written are not in the store.
    pub base: Option<DiskBase>,
}

impl DiskRecord {
    /// Blocks of the disk, the last one counted whole.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.shape().blocks()
    }

    /// The shape that a driver must report for it.
    #[must_use]
    pub fn shape(&self) -> DiskShape {
        DiskShape { name: self.name.clone(), size_bytes: self.size_bytes, base: self.base.clone() }
    }

    /// Why a machine's disk is not this one, as a sentence; `None` if it is.
    #[must_use]
    pub fn differs(&self, found: &DiskShape) -> Option<String> {
        if self.size_bytes != found.size_bytes {
            return Some(format!("it has {} bytes, {} at the checkpoint", found.size_bytes, self.size_bytes));
        }
        match (&self.base, &found.base) {
            (None, None) => None,
            (Some(was), Some(is)) => was.differs(is),
            (Some(_), None) => Some("it has no base image, but had one at the checkpoint".into()),
            (None, Some(_)) => Some("it has a base image, but had none at the checkpoint".into()),
        }
    }
}
