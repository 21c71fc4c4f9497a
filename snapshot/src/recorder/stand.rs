use std::sync::Arc;

use crate::catalogue::{Branching, Position};
use crate::disk::{DiskStand, DiskStands};
use crate::error::Result;
use crate::page_map::PageMap;
use crate::store::Store;

/// Where the machine stands, and what the store has in its frames there.
#[derive(Clone)]
pub(super) struct Stand {
    pub(super) position: Option<Position>,
    pub(super) map: Arc<PageMap>,
    pub(super) keyframe_distance: u64,
    pub(super) keyframe_rows: u64,
    pub(super) disks: DiskStands,
    /// The branch that becomes whole with the next checkpoint. `map` and `disks` are those of the other machine's
    /// checkpoint then.
    pub(super) branch: Option<Branching>,
}

impl Stand {
    /// Before the first checkpoint: the store has nothing in any frame.
    pub(super) fn nowhere(pages: usize) -> Self {
        Self {
            position: None,
            map: Arc::new(PageMap::zero(pages)),
            keyframe_distance: 0,
            keyframe_rows: 0,
            disks: DiskStands::new(),
            branch: None,
        }
    }

    /// At a checkpoint of the store.
    pub(super) fn at(store: &Store, position: Position) -> Result<Self> {
        let link = store.catalogue().link(position.checkpoint)?;
        Ok(Self {
            position: Some(position),
            map: store.map(position.checkpoint)?,
            keyframe_distance: link.keyframe_distance,
            keyframe_rows: link.keyframe_rows,
            disks: DiskStand::at(store, position.checkpoint)?,
            branch: None,
        })
    }
}
