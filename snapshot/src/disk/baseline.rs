use std::collections::BTreeMap;
use std::sync::Arc;

use retrovisor_guest::DiskState;

use super::map::DiskMap;
use super::record::DiskRecord;
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

/// The disks of a machine that the next capture is based on, by name.
pub(crate) type DiskBaselines = BTreeMap<String, DiskBaseline>;

/// A disk at the checkpoint that the next capture is based on.
#[derive(Clone)]
pub(crate) struct DiskBaseline {
    pub(crate) record: DiskRecord,
    /// The contents of its blocks.
    pub(crate) map: Arc<DiskMap>,
    pub(crate) keyframe_distance: u64,
    pub(crate) keyframe_rows: u64,
    /// A state that the driver retains, with the contents of its blocks: the next changes are relative to it.
    pub(crate) seen: Option<(DiskState, Arc<DiskMap>)>,
}

impl DiskBaseline {
    /// The disks at a checkpoint whose contents are in the store.
    pub(crate) fn at(store: &Store, checkpoint: CheckpointId) -> Result<DiskBaselines> {
        let states = store.state_disks(checkpoint)?;
        let mut baselines = DiskBaselines::new();
        for (record, link) in store.catalogue().disks_at(checkpoint)? {
            let map = store.disk_map(checkpoint, &record)?;
            let state = states.iter().find(|state| state.disk == record.name);
            let baseline = Self {
                seen: state.map(|state| (state.clone(), Arc::clone(&map))),
                map,
                keyframe_distance: link.keyframe_distance,
                keyframe_rows: link.keyframe_rows,
                record,
            };
            baselines.insert(baseline.record.name.clone(), baseline);
        }
        Ok(baselines)
    }
}
