use std::sync::Arc;

use retrovisor_guest::{BLOCK_SIZE, DiskBlocks, Page, RunContent, is_zero};

use super::baseline::{DiskBaseline, DiskBaselines};
use super::captured::CapturedDisk;
use super::map::{BASE, DiskMap};
use super::maps::disk_keyframe;
use crate::catalogue::{Keyframe, NewDiskVersion};
use crate::content::ContentRef;
use crate::content_writer::ContentWriter;
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::store::Store;

/// A full map is stored after this many checkpoints,
const KEYFRAME_DISTANCE: u64 = 64;
/// or once the changes since the last one outnumber those of the map itself (but not before this many).
const KEYFRAME_ROWS_MIN: u64 = 1 << 14;
/// Blocks added at a time: 4 MiB.
const BATCH_BLOCKS: usize = 1024;

/// A captured disk whose contents are written: the rows for the catalogue, and the baseline of the next capture.
pub(crate) struct PreparedDisk {
    pub(crate) baseline: DiskBaseline,
    pub(crate) changes: Vec<(u64, ContentRef)>,
    pub(crate) keyframe: Option<Keyframe>,
    /// To compare blocks for the audit.
    pub(crate) blocks: Option<Box<dyn DiskBlocks>>,
    /// Whether every block that was ever written was read, and not only what changed.
    pub(crate) is_whole: bool,
}

impl PreparedDisk {
    /// Reads what changed on a disk and adds its blocks. `baselines` has the disks at the checkpoint before.
    pub(crate) fn prepare(
        store: &Store,
        content_writer: &mut ContentWriter,
        machine: MachineId,
        baselines: &DiskBaselines,
        captured: &mut CapturedDisk,
    ) -> Result<Self> {
        let before = baselines
            .get(&captured.shape.name)
            .filter(|baseline| baseline.record.differs(&captured.shape).is_none());
        let seen = before.and_then(|baseline| baseline.seen.as_ref());
        let mut map = match &captured.since {
            None => DiskMap::base(captured.shape.blocks()),
            Some(since) => {
                let found = seen.filter(|(state, _)| state == since).map(|(_, map)| (**map).clone());
                found.ok_or_else(|| Error::Invalid {
                    what: "disk",
                    why: format!(
                        "the changes of {} do not follow those of the checkpoint before",
                        since.disk
                    ),
                })?
            }
        };
        let mut waiting: Vec<(u64, Box<Page>)> = Vec::new();
        let mut bytes = Vec::new();
        while let Some(run) = captured.changes.next_run(&mut bytes)? {
            match run.content {
                RunContent::Zero => map.fill(run.first, run.count, ContentRef::Zero),
                RunContent::Base => map.fill(run.first, run.count, BASE),
                RunContent::Data => {
                    for (page, block) in bytes.as_chunks::<BLOCK_SIZE>().0.iter().zip(run.first..) {
                        if is_zero(page) {
                            map.set(block, ContentRef::Zero);
                        } else {
                            waiting.push((block, Box::new(*page)));
                        }
                    }
                    if waiting.len() >= BATCH_BLOCKS {
                        add_blocks(store, content_writer, &mut waiting, &mut map)?;
                    }
                }
            }
        }
        add_blocks(store, content_writer, &mut waiting, &mut map)?;

        // The baseline of the origin of a branch is compared with, but not continued.
        let before = before.filter(|baseline| baseline.record.machine == machine);
        let record = match before {
            Some(baseline) => baseline.record.clone(),
            None => store.catalogue().disk(machine, &captured.shape)?,
        };
        let nothing = DiskMap::base(captured.shape.blocks());
        let old = before.map_or(&nothing, |baseline| &baseline.map);
        let changes: Vec<_> =
            old.diff(&map).into_iter().map(|(block, _, content)| (block, content)).collect();
        let (distance, rows) = before.map_or((0, 0), |baseline| {
            (baseline.keyframe_distance + 1, baseline.keyframe_rows + changes.len() as u64)
        });
        let is_key = distance == 0
            || distance >= KEYFRAME_DISTANCE
            || rows > KEYFRAME_ROWS_MIN && rows > map.iter().count() as u64;
        let keyframe = if is_key { Some(disk_keyframe(&store.key, record.id, &map)?) } else { None };
        let map = Arc::new(map);
        let baseline = DiskBaseline {
            record,
            seen: Some((captured.at.clone(), Arc::clone(&map))),
            map,
            keyframe_distance: if is_key { 0 } else { distance },
            keyframe_rows: if is_key { 0 } else { rows },
        };
        let (blocks, is_whole) = (captured.blocks.take(), captured.since.is_none());
        Ok(Self { baseline, changes, keyframe, blocks, is_whole })
    }
}

impl PreparedDisk {
    /// The rows for the catalogue.
    pub(crate) fn version(&self) -> NewDiskVersion<'_> {
        NewDiskVersion {
            disk: self.baseline.record.id,
            changes: &self.changes,
            keyframe: self.keyframe.as_ref(),
            keyframe_distance: self.baseline.keyframe_distance,
            keyframe_rows: self.baseline.keyframe_rows,
        }
    }
}

/// Adds blocks and records their contents.
fn add_blocks(
    store: &Store,
    content_writer: &mut ContentWriter,
    waiting: &mut Vec<(u64, Box<Page>)>,
    map: &mut DiskMap,
) -> Result<()> {
    let pages: Vec<&Page> = waiting.iter().map(|(_, page)| &**page).collect();
    let contents = content_writer.add(&store.key, store.catalogue(), &pages)?;
    for ((block, _), content) in waiting.iter().zip(contents) {
        map.set(*block, content);
    }
    waiting.clear();
    Ok(())
}
