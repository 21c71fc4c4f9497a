//! Restoring a machine's disks to a checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use retrovisor_guest::{
    BLOCK_SIZE, BlockContent, DiskState, Machine, MachineError, MachineState, Page, RunContent, is_zero,
};

use super::baseline::{DiskBaseline, DiskBaselines};
use super::map::{BASE, DiskMap};
use super::record::DiskRecord;
use crate::content::{ContentId, ContentRef};
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::key::Hash;
use crate::store::Store;

/// Blocks read from packs and written at a time: 16 MiB.
const BATCH_BLOCKS: usize = 4096;

/// A disk at the target.
pub(crate) struct DiskTarget {
    pub(crate) record: DiskRecord,
    pub(crate) map: Arc<DiskMap>,
}

/// How the disks are restored to a checkpoint.
pub(crate) enum DiskRestore {
    /// The driver retains their contents and switches to them.
    Retained,
    /// Their blocks are written.
    Blocks(Vec<DiskTarget>),
}

impl DiskRestore {
    /// Determines how a checkpoint's disks can be restored; an error if they cannot, before anything is written.
    pub(crate) fn find(
        store: &Store,
        machine: &mut dyn Machine,
        checkpoint: CheckpointId,
        state: &MachineState,
    ) -> Result<Self> {
        let mismatch = |what: String, found: String| {
            let expected = "the disk of the checkpoint".to_owned();
            Error::Machine(MachineError::Mismatch { what, expected, found })
        };
        let stored = store.catalogue().disks_at(checkpoint)?;
        for (record, _) in &stored {
            let found = machine.disks().iter().find(|shape| shape.name == record.name);
            let found = found.ok_or_else(|| {
                mismatch(
                    format!("disk {}", record.name),
                    "no disk of that name whose blocks can be read".into(),
                )
            })?;
            if let Some(why) = record.differs(found) {
                return Err(mismatch(format!("disk {}", record.name), format!("another one: {why}")));
            }
        }
        if machine.retains_disks(state)? {
            return Ok(Self::Retained);
        }
        let mut targets = Vec::new();
        for disk in &state.disks {
            let found = stored.iter().find(|(record, _)| record.name == disk.disk);
            let (record, _) = found.ok_or_else(|| {
                mismatch(
                    format!("disk {}", disk.disk),
                    format!(
                        "a disk without snapshot {}, and its blocks are not in the store",
                        disk.reference
                    ),
                )
            })?;
            let map = store.disk_map(checkpoint, record)?;
            targets.push(DiskTarget { record: record.clone(), map });
        }
        Ok(Self::Blocks(targets))
    }

    /// Whether no block has to be written.
    pub(crate) fn is_retained(&self) -> bool {
        matches!(self, Self::Retained)
    }

    /// The baselines of disks that were restored block by block, of which the driver retains these states.
    pub(crate) fn baselines_at(&self, kept: &[DiskState]) -> DiskBaselines {
        let Self::Blocks(targets) = self else { return DiskBaselines::new() };
        let baselines = targets.iter().filter_map(|target| {
            let state = kept.iter().find(|state| state.disk == target.record.name)?;
            let baseline = DiskBaseline {
                record: target.record.clone(),
                map: Arc::clone(&target.map),
                keyframe_distance: 0,
                keyframe_rows: 0,
                seen: Some((state.clone(), Arc::clone(&target.map))),
            };
            Some((target.record.name.clone(), baseline))
        });
        baselines.collect()
    }

    /// After blocks were written, further changes are relative to the state before: the driver retains that one.
    pub(crate) fn seen_from(&self, before: &DiskBaselines, after: &mut DiskBaselines) {
        if let Self::Blocks(_) = self {
            for (name, baseline) in after {
                baseline.seen = before.get(name).and_then(|baseline| baseline.seen.clone());
            }
        }
    }

    /// Writes the blocks that differ from the baselines. Returns the state to be applied, and the number of written
    /// blocks.
    pub(crate) fn restore(
        &self,
        store: &Store,
        machine: &mut dyn Machine,
        baselines: &DiskBaselines,
        state: &MachineState,
    ) -> Result<(MachineState, u64)> {
        let Self::Blocks(targets) = self else { return Ok((state.clone(), 0)) };
        let mut written = 0;
        for target in targets {
            let name = &target.record.name;
            let shape = target.record.shape();
            let baseline = baselines.get(name).filter(|baseline| baseline.record.differs(&shape).is_none());
            // The machine's disk may have had another base image then.
            let baseline = baseline.ok_or_else(|| Error::Invalid {
                what: "target",
                why: format!("{name} is not the disk that the machine has now"),
            })?;
            let differing: Vec<_> =
                baseline.map.diff(&target.map).into_iter().map(|(block, _, to)| (block, to)).collect();
            written += write_blocks(store, machine, name, &differing)?;
        }
        Ok((with_current_disks(state), written))
    }

    /// The same for a machine whose disks are unknown: they are read first.
    pub(crate) fn restore_unknown(
        &self,
        store: &Store,
        machine: &mut dyn Machine,
        state: &MachineState,
    ) -> Result<(MachineState, u64)> {
        let Self::Blocks(targets) = self else { return Ok((state.clone(), 0)) };
        let found = machine.capture_state()?;
        let written: Result<u64> = targets.iter().try_fold(0, |written, target| {
            let at = found.disks.iter().find(|disk| disk.disk == target.record.name);
            let at = at.ok_or_else(|| Error::Invalid {
                what: "target",
                why: format!("the machine has no disk {}", target.record.name),
            })?;
            let differing = differing(store, machine, at, target)?;
            Ok(written + write_blocks(store, machine, &target.record.name, &differing)?)
        });
        if let Err(error) = machine.release_state(&found) {
            tracing::warn!(%error, "the disks' contents before a restore could not be released");
        }
        Ok((with_current_disks(state), written?))
    }
}

fn with_current_disks(state: &MachineState) -> MachineState {
    let disks = state.disks.iter().map(|disk| DiskState::unchanged(&disk.disk)).collect();
    MachineState { disks, ..state.clone() }
}

/// What was read from a block.
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
            // A missing content is an error when it is read.
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

/// Writes blocks, which are ascending. Returns how many.
fn write_blocks(
    store: &Store,
    machine: &mut dyn Machine,
    disk: &str,
    blocks: &[(u64, ContentRef)],
) -> Result<u64> {
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
