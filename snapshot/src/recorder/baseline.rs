use std::sync::Arc;

use crate::catalogue::{Branching, Position};
use crate::disk::{DiskBaseline, DiskBaselines};
use crate::error::Result;
use crate::page_map::PageMap;
use crate::store::Store;

/// The checkpoint that the next one is based on: its position, and its maps.
#[derive(Clone)]
pub(super) struct Baseline {
    pub(super) position: Option<Position>,
    pub(super) map: Arc<PageMap>,
    pub(super) keyframe_distance: u64,
    pub(super) keyframe_rows: u64,
    pub(super) disks: DiskBaselines,
    /// The branch that is complete with the next checkpoint. `map` and `disks` are those of the other machine's
    /// checkpoint then.
    pub(super) branch: Option<Branching>,
}

impl Baseline {
    /// Before the first checkpoint: all frames are zero.
    pub(super) fn none(pages: usize) -> Self {
        Self {
            position: None,
            map: Arc::new(PageMap::zero(pages)),
            keyframe_distance: 0,
            keyframe_rows: 0,
            disks: DiskBaselines::new(),
            branch: None,
        }
    }

    /// A checkpoint of the store.
    pub(super) fn at(store: &Store, position: Position) -> Result<Self> {
        let link = store.catalogue().link(position.checkpoint)?;
        Ok(Self {
            position: Some(position),
            map: store.map(position.checkpoint)?,
            keyframe_distance: link.keyframe_distance,
            keyframe_rows: link.keyframe_rows,
            disks: DiskBaseline::at(store, position.checkpoint)?,
            branch: None,
        })
    }
}
