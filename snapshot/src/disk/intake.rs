use std::sync::Arc;

use retrovisor_guest::{BLOCK_SIZE, Page, RunContent, is_zero};

use super::draft::DiskDraft;
use super::map::{BASE, DiskMap};
use super::maps::disk_keyframe;
use super::stand::{DiskStand, DiskStands};
use crate::catalogue::{Keyframe, NewDiskVersion};
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::intake::Intake;
use crate::store::Store;

/// A full map is stored after so many checkpoints,
const KEYFRAME_DISTANCE: u64 = 64;
/// or once the changes since the last one outnumber those of the map itself (but not before this many).
const KEYFRAME_ROWS_MIN: u64 = 1 << 14;
/// Blocks taken in at a time: 4 MiB.
const BATCH_BLOCKS: usize = 1024;

/// A disk taken in: all that the catalogue will be told, and where the disk stands once it was.
pub(crate) struct DiskReady {
    pub(crate) stand: DiskStand,
    pub(crate) changes: Vec<(u64, ContentRef)>,
    pub(crate) keyframe: Option<Keyframe>,
}

impl DiskReady {
    /// Reads what changed on a disk and takes its blocks in. `stands` says where the disks stood at the checkpoint
    /// before.
    pub(crate) fn take_in(
        store: &Store,
        intake: &mut Intake,
        machine: MachineId,
        stands: &DiskStands,
        draft: &mut DiskDraft,
    ) -> Result<Self> {
        let before =
            stands.get(&draft.shape.name).filter(|stand| stand.record.differs(&draft.shape).is_none());
        let seen = before.and_then(|stand| stand.seen.as_ref());
        let mut map = match &draft.since {
            None => DiskMap::base(draft.shape.blocks()),
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
        while let Some(run) = draft.changes.next_run(&mut bytes)? {
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
                        name(store, intake, &mut waiting, &mut map)?;
                    }
                }
            }
        }
        name(store, intake, &mut waiting, &mut map)?;

        // That of another machine, from which this one branched off, tells what is there, and is not gone on with.
        let before = before.filter(|stand| stand.record.machine == machine);
        let record = match before {
            Some(stand) => stand.record.clone(),
            None => store.catalogue().disk(machine, &draft.shape)?,
        };
        let nothing = DiskMap::base(draft.shape.blocks());
        let old = before.map_or(&nothing, |stand| &stand.map);
        let changes: Vec<_> =
            old.diff(&map).into_iter().map(|(block, _, content)| (block, content)).collect();
        let (distance, rows) = before.map_or((0, 0), |stand| {
            (stand.keyframe_distance + 1, stand.keyframe_rows + changes.len() as u64)
        });
        let is_key = distance == 0
            || distance >= KEYFRAME_DISTANCE
            || rows > KEYFRAME_ROWS_MIN && rows > map.iter().count() as u64;
        let keyframe = if is_key { Some(disk_keyframe(&store.key, record.id, &map)?) } else { None };
        let map = Arc::new(map);
        let stand = DiskStand {
            record,
            seen: Some((draft.at.clone(), Arc::clone(&map))),
            map,
            keyframe_distance: if is_key { 0 } else { distance },
            keyframe_rows: if is_key { 0 } else { rows },
        };
        Ok(Self { stand, changes, keyframe })
    }
}

impl DiskReady {
    /// What the catalogue is to be told.
    pub(crate) fn version(&self) -> NewDiskVersion<'_> {
        NewDiskVersion {
            disk: self.stand.record.id,
            changes: &self.changes,
            keyframe: self.keyframe.as_ref(),
            keyframe_distance: self.stand.keyframe_distance,
            keyframe_rows: self.stand.keyframe_rows,
        }
    }
}

/// Takes blocks in and notes their names.
fn name(
    store: &Store,
    intake: &mut Intake,
    waiting: &mut Vec<(u64, Box<Page>)>,
    map: &mut DiskMap,
) -> Result<()> {
    let pages: Vec<&Page> = waiting.iter().map(|(_, page)| &**page).collect();
    let names = intake.add(&store.key, store.catalogue(), &pages)?;
    for ((block, _), name) in waiting.iter().zip(names) {
        map.set(*block, name);
    }
    waiting.clear();
    Ok(())
}
