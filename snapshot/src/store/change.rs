use retrovisor_guest::Gfn;

use super::opening::Store;
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::CheckpointId;

/// A frame that differs between two checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageChange {
    /// The frame.
    pub gfn: Gfn,
    /// Its content in the first.
    pub before: ContentRef,
    /// Its content in the second.
    pub after: ContentRef,
}

impl Store {
    /// The frames that differ between two checkpoints of machines of one layout, ascending.
    pub fn changed(&self, a: CheckpointId, b: CheckpointId) -> Result<Vec<PageChange>> {
        let layout_of = |checkpoint| {
            let machine = self.catalogue().checkpoint(checkpoint)?.machine;
            Ok::<_, Error>(self.catalogue().machine_by_id(machine)?.identity.layout)
        };
        let layout = layout_of(a)?;
        if layout != layout_of(b)? {
            let why = "the two checkpoints belong to machines with different memory layouts".to_owned();
            return Err(Error::Invalid { what: "checkpoints to compare", why });
        }
        let (a, b) = (self.map(a)?, self.map(b)?);
        Ok(a.diff(&b)
            .filter_map(|(index, before, after)| {
                Some(PageChange { gfn: layout.gfn(index as u64)?, before, after })
            })
            .collect())
    }
}
