use std::collections::BTreeMap;
use std::sync::Arc;

use retrovisor_guest::DiskState;

use super::map::DiskMap;
use super::record::DiskRecord;
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

/// Where the disks of a machine stand, by name.
pub(crate) type DiskStands = BTreeMap<String, DiskStand>;

/// What the store has of a disk where the machine stands.
#[derive(Clone)]
pub(crate) struct DiskStand {
    pub(crate) record: DiskRecord,
    /// What stands in its blocks at the checkpoint.
    pub(crate) map: Arc<DiskMap>,
    pub(crate) keyframe_distance: u64,
    pub(crate) keyframe_rows: u64,
    /// Contents that the driver keeps, and what stands in their blocks: what the disk's changes are counted from.
    pub(crate) seen: Option<(DiskState, Arc<DiskMap>)>,
}

impl DiskStand {
    /// The disks at a checkpoint of the store, as far as they are in it.
    pub(crate) fn at(store: &Store, checkpoint: CheckpointId) -> Result<DiskStands> {
        let states = store.state_disks(checkpoint)?;
        let mut stands = DiskStands::new();
        for (record, link) in store.catalogue().disks_at(checkpoint)? {
            let map = store.disk_map(checkpoint, &record)?;
            let state = states.iter().find(|state| state.disk == record.name);
            let stand = Self {
                seen: state.map(|state| (state.clone(), Arc::clone(&map))),
                map,
                keyframe_distance: link.keyframe_distance,
                keyframe_rows: link.keyframe_rows,
                record,
            };
            stands.insert(stand.record.name.clone(), stand);
        }
        Ok(stands)
    }
}
