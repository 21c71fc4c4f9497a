use std::collections::HashSet;
use std::sync::Arc;

use super::map::DiskMap;
use super::maps::{block_changes_hash, disk_keyframe};
use crate::catalogue::ReparentedDisk;
use crate::content::ContentRef;
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

impl Store {
    /// Calls `each` with all contents to which a checkpoint's disks refer directly: in their changes and full maps.
    pub(crate) fn each_disk_content(
        &self,
        checkpoint: CheckpointId,
        mut each: impl FnMut(ContentRef),
    ) -> Result<()> {
        for (record, link) in self.catalogue().disks_at(checkpoint)? {
            self.block_changes(&link)?.into_iter().for_each(|(_, content)| each(content));
            if link.keyframe_distance == 0 {
                let map = self.disk_full_map(checkpoint, &record)?;
                map.iter().for_each(|(_, content)| each(content));
            }
        }
        Ok(())
    }

    /// The new rows of a checkpoint's disks when the checkpoints between it and `ancestor` are removed.
    pub(crate) fn reparented_disks(
        &self,
        checkpoint: CheckpointId,
        gone: &HashSet<CheckpointId>,
        ancestor: Option<CheckpointId>,
    ) -> Result<Vec<ReparentedDisk>> {
        let above = match ancestor {
            Some(ancestor) => self.catalogue().disks_at(ancestor)?,
            None => Vec::new(),
        };
        let mut disks = Vec::new();
        for (record, link) in self.catalogue().disks_at(checkpoint)? {
            let map = self.disk_map(checkpoint, &record)?;
            let over = above.iter().find(|(disk, _)| disk.id == record.id).map(|(_, link)| link);
            let before = match over {
                Some(over) => self.disk_map(over.checkpoint, &record)?,
                None => Arc::new(DiskMap::base(record.blocks())),
            };
            let changes: Vec<_> =
                before.diff(&map).into_iter().map(|(block, _, content)| (block, content)).collect();
            let chain = self.catalogue().disk_chain(checkpoint, record.id)?;
            let loses = chain.last().is_some_and(|last| gone.contains(&last.checkpoint));
            let keyframe = if link.keyframe_distance > 0 && (loses || over.is_none()) {
                Some(disk_keyframe(&self.key, record.id, &map)?)
            } else {
                None
            };
            let (keyframe_distance, keyframe_rows) = match over {
                Some(over) if keyframe.is_none() && link.keyframe_distance > 0 => {
                    (over.keyframe_distance + 1, over.keyframe_rows + changes.len() as u64)
                }
                _ => (0, 0),
            };
            disks.push(ReparentedDisk {
                disk: record.id,
                changes_hash: block_changes_hash(&self.key, ancestor, record.id, &changes),
                changes,
                keyframe,
                keyframe_distance,
                keyframe_rows,
            });
        }
        Ok(disks)
    }
}
