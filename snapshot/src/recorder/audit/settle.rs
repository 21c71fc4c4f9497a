use retrovisor_guest::{MemoryLayout, PageSet};

use super::compare::compare;
use super::disks::settle_disks;
use super::outcome::note;
use super::sample::Sampled;
use super::status::SharedAudit;
use crate::disk::PreparedDisk;
use crate::id::MachineId;
use crate::mutex::lock;
use crate::page_map::PageMap;
use crate::store::Store;

/// A checkpoint that was stored.
pub(in crate::recorder) struct StoredCheckpoint<'a> {
    pub(in crate::recorder) sequence: u64,
    pub(in crate::recorder) map: &'a PageMap,
    /// All frames that were copied for it.
    pub(in crate::recorder) dirty: &'a PageSet,
    /// What was copied for the audit.
    pub(in crate::recorder) sampled: Option<&'a Sampled>,
    /// Its disks.
    pub(in crate::recorder) disks: &'a mut [PreparedDisk],
}

/// Compares what was copied for the audit, and blocks of disks, with the checkpoint that was stored, and records the
/// outcome. Returns whether memory differed.
pub(in crate::recorder) fn settle(
    store: &Store,
    machine: MachineId,
    layout: &MemoryLayout,
    shared: &SharedAudit,
    stored: StoredCheckpoint<'_>,
) -> bool {
    let StoredCheckpoint { sequence, map, dirty, sampled, disks } = stored;
    let sample = sampled.and_then(|sampled| sampled.sample.get());
    let compared = sample.map(|sample| compare(store, map, sample)).transpose();
    let compared = compared.unwrap_or_else(|error| {
        tracing::warn!(%error, "a checkpoint could not be audited");
        None
    });
    let mut state = lock(shared);
    if let Some(sampled) = sampled {
        state.ledger.copied(sequence, &sampled.copied);
    }
    let is_full = dirty.len() == layout.pages();
    let are_whole = disks.iter().all(|disk| disk.is_whole);
    // It was captured before the recorder knew of the mismatch.
    let is_doubtful = state.needs_full && !is_full || state.needs_full_disks && !are_whole;
    state.needs_full &= !is_full;
    state.needs_full_disks &= !are_whole;
    if let (Some(_), Some(sampled)) = (&compared, sampled) {
        state.walked_to(sampled.to);
    }
    drop(state);
    if is_doubtful && let Err(error) = store.catalogue().mark_doubtful(machine, sequence..=sequence) {
        tracing::error!(%error, sequence, "a doubtful checkpoint could not be marked");
    }
    settle_disks(store, machine, shared, sequence, disks);
    compared.and_then(|compared| note(store, machine, layout, shared, &compared, sequence)).is_some()
}
