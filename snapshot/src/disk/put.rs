//! Bringing a machine's disks to where they were at a checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use retrovisor_guest::{
    BLOCK_SIZE, BlockContent, DiskState, Machine, MachineError, MachineState, Page, RunContent, is_zero,
};

use super::map::{BASE, DiskMap};
use super::record::DiskRecord;
use super::stand::{DiskStand, DiskStands};
use crate::content::{ContentId, ContentRef};
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::key::Hash;
use crate::store::Store;

/// Blocks read from packs and written at a time: 16 MiB.
const BATCH_BLOCKS: usize = 4096;

/// A disk as it is to become.
pub(crate) struct DiskTarget {
    pub(crate) record: DiskRecord,
    pub(crate) map: Arc<DiskMap>,
}

/// How the disks get to where they were at a checkpoint.
pub(crate) enum DiskRoute {
    /// The driver keeps their contents.
    Kept,
    /// Their blocks are written.
    Blocks(Vec<DiskTarget>),
}

impl DiskRoute {
    /// Finds the way to a checkpoint's disks, and refuses what cannot be: before anything is touched.
    pub(crate) fn find(
        store: &Store,
        machine: &mut dyn Machine,
        checkpoint: CheckpointId,
        state: &MachineState,
    ) -> Result<Self> {
        let mismatch = |what: String, found: String| {
            let expected = "as it was at the checkpoint".to_owned();
            Error::Machine(MachineError::Mismatch { what, expected, found })
        };
        let stored = store.catalogue().disks_at(checkpoint)?;
        for (record, _) in &stored {
            let found = machine.disks().iter().find(|shape| shape.name == record.name);
            let found = found.ok_or_else(|| {
                mismatch(
                    format!("disk {}", record.name),
                    "not there, or not to be read block by block".into(),
                )
            })?;
            if let Some(why) = record.differs(found) {
                return Err(mismatch(format!("disk {}", record.name), format!("another one: {why}")));
            }
        }
        if machine.retains_disks(state)? {
            return Ok(Self::Kept);
        }
        let mut targets = Vec::new();
        for disk in &state.disks {
            let found = stored.iter().find(|(record, _)| record.name == disk.disk);
            let (record, _) = found.ok_or_else(|| {
                mismatch(
                    format!("disk {}", disk.disk),
                    format!("without {}, and its blocks are not in the store", disk.reference),
                )
            })?;
            let map = store.disk_map(checkpoint, record)?;
            targets.push(DiskTarget { record: record.clone(), map });
        }
        Ok(Self::Blocks(targets))
    }

    /// Whether nothing has to be written.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self, Self::Kept)
    }

    /// Where the disks of a machine stand that was brought here by their blocks, and which keeps these states of them.
    /// Nothing of those that came here otherwise.
    pub(crate) fn stands_at(&self, kept: &[DiskState]) -> DiskStands {
        let Self::Blocks(targets) = self else { return DiskStands::new() };
        let stands = targets.iter().filter_map(|target| {
            let state = kept.iter().find(|state| state.disk == target.record.name)?;
            let stand = DiskStand {
                record: target.record.clone(),
                map: Arc::clone(&target.map),
                keyframe_distance: 0,
                keyframe_rows: 0,
                seen: Some((state.clone(), Arc::clone(&target.map))),
            };
            Some((target.record.name.clone(), stand))
        });
        stands.collect()
    }

    /// After blocks were written, their changes are counted from what the machine had before: that is what the driver
    /// keeps.
    pub(crate) fn seen_from(&self, before: &DiskStands, after: &mut DiskStands) {
        if let Self::Blocks(_) = self {
            for (name, stand) in after {
                stand.seen = before.get(name).and_then(|stand| stand.seen.clone());
            }
        }
    }

    /// Writes the blocks that differ from where the machine stands. Answers the state to be applied, and how many
    /// blocks were written.
    pub(crate) fn go(
        &self,
        store: &Store,
        machine: &mut dyn Machine,
        stands: &DiskStands,
        state: &MachineState,
    ) -> Result<(MachineState, u64)> {
        let Self::Blocks(targets) = self else { return Ok((state.clone(), 0)) };
        let mut written = 0;
        for target in targets {
            let name = &target.record.name;
            let shape = target.record.shape();
            let stand = stands.get(name).filter(|stand| stand.record.differs(&shape).is_none());
            // The disk that the machine stands on may have lain over another image.
            let stand = stand.ok_or_else(|| Error::Invalid {
                what: "target",
                why: format!("{name} is not the disk that the machine has now"),
            })?;
            let differing: Vec<_> =
                stand.map.diff(&target.map).into_iter().map(|(block, _, to)| (block, to)).collect();
            written += put(store, machine, name, &differing)?;
        }
        Ok((as_it_is(state), written))
    }

    /// The same, into a machine of whose disks nothing is known: they are looked at first.
    pub(crate) fn go_from_anywhere(
        &self,
        store: &Store,
        machine: &mut dyn Machine,
        state: &MachineState,
    ) -> Result<(MachineState, u64)> {
        let Self::Blocks(targets) = self else { return Ok((state.clone(), 0)) };
        let found = machine.capture_state()?;
        let put: Result<u64> = targets.iter().try_fold(0, |written, target| {
            let at = found.disks.iter().find(|disk| disk.disk == target.record.name);
            let at = at.ok_or_else(|| Error::Invalid {
                what: "target",
                why: format!("the machine has no disk {}", target.record.name),
            })?;
            let differing = differing(store, machine, at, target)?;
            Ok(written + put(store, machine, &target.record.name, &differing)?)
        });
        if let Err(error) = machine.release_state(&found) {
            tracing::warn!(%error, "the disks' contents before a restore could not be released");
        }
        Ok((as_it_is(state), put?))
    }
}

fn as_it_is(state: &MachineState) -> MachineState {
    let disks = state.disks.iter().map(|disk| DiskState::unchanged(&disk.disk)).collect();
    MachineState { disks, ..state.clone() }
}

/// What stands in a block of a disk that was looked at.
#[derive(PartialEq)]
enum Found {
    Zero,
    Data(Hash),
}

/// The blocks in which the machine's disk differs from the target.
fn differing(
    store: &Store,
    machine: &dyn Machine,
    at: &DiskState,
    target: &DiskTarget,
) -> Result<Vec<(u64, ContentRef)>> {
    let mut found: BTreeMap<u64, Found> = BTreeMap::new();
    let mut changes = machine.disk_changes(at, None)?;
    let mut bytes = Vec::new();
    while let Some(run) = changes.next_run(&mut bytes)? {
        let blocks = run.first..run.first.saturating_add(run.count).min(target.record.blocks());
        match run.content {
            RunContent::Base => {}
            RunContent::Zero => found.extend(blocks.map(|block| (block, Found::Zero))),
            RunContent::Data => {
                let pages = bytes.as_chunks::<BLOCK_SIZE>().0.iter().zip(blocks);
                found.extend(pages.map(|(page, block)| {
                    (block, if is_zero(page) { Found::Zero } else { Found::Data(store.key.page(page)) })
                }));
            }
        }
    }
    let mut ids: Vec<ContentId> = target.map.iter().filter_map(|(_, content)| content.stored()).collect();
    ids.sort_unstable();
    ids.dedup();
    let places = store.catalogue().places(&ids)?;
    let hashes: HashMap<ContentId, Hash> = places.into_iter().map(|place| (place.id, place.hash)).collect();
    let mut differing = Vec::new();
    for (block, wanted) in target.map.iter() {
        let there = found.remove(&block);
        let same = match wanted {
            ContentRef::Zero => there == Some(Found::Zero),
            ContentRef::Removed => there.is_none(),
            // A content that is missing is told when it is read.
            ContentRef::Stored(id) => hashes.get(&id).is_some_and(|hash| there == Some(Found::Data(*hash))),
        };
        if !same {
            differing.push((block, wanted));
        }
    }
    differing.extend(found.into_keys().map(|block| (block, BASE)));
    differing.sort_unstable_by_key(|(block, _)| *block);
    Ok(differing)
}

/// Writes blocks, which are ascending. Answers how many.
fn put(store: &Store, machine: &mut dyn Machine, disk: &str, blocks: &[(u64, ContentRef)]) -> Result<u64> {
    let total = blocks.len() as u64;
    for batch in blocks.chunks(BATCH_BLOCKS) {
        let pages = store.contents(batch.iter().filter_map(|(_, content)| content.stored()))?;
        for run in batch.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let contents = run.iter().map(|(_, content)| match content {
                ContentRef::Zero => Ok(BlockContent::Zero),
                ContentRef::Removed => Ok(BlockContent::Base),
                ContentRef::Stored(id) => {
                    let page: &Arc<Page> = pages.get(id).ok_or_else(|| crate::store::missing(*id))?;
                    Ok(BlockContent::Data(page))
                }
            });
            let contents = contents.collect::<Result<Vec<_>>>()?;
            machine.write_blocks(disk, run[0].0, &contents)?;
        }
    }
    Ok(total)
}
