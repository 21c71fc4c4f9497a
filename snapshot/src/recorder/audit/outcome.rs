//! What follows from a comparison: proven frames are noted, a mismatch is recorded.

use std::ops::RangeInclusive;

use retrovisor_guest::{MemoryLayout, PageSet};
use serde_json::json;

use super::compare::{Compared, compare};
use super::sample::Sampled;
use super::status::SharedAudit;
use crate::catalogue::{EventSeverity, NewIncident, Verdict, lock};
use crate::error::Result;
use crate::id::MachineId;
use crate::page_map::PageMap;
use crate::store::Store;

/// The kind of the events and incidents of the audit.
const KIND: &str = "capture";
/// Frames that an event names, at most.
const NAMED_MAX: usize = 64;

/// A checkpoint that was stored.
pub(in crate::recorder) struct StoredCheckpoint<'a> {
    pub(in crate::recorder) sequence: u64,
    pub(in crate::recorder) map: &'a PageMap,
    /// All frames that were copied for it.
    pub(in crate::recorder) dirty: &'a PageSet,
    /// What was copied for the audit.
    pub(in crate::recorder) sampled: Option<&'a Sampled>,
}

/// Compares what was copied for the audit with the checkpoint that was stored, and records the outcome. Returns whether
/// there was a mismatch.
pub(in crate::recorder) fn settle(
    store: &Store,
    machine: MachineId,
    layout: &MemoryLayout,
    shared: &SharedAudit,
    stored: &StoredCheckpoint<'_>,
) -> bool {
    let sequence = stored.sequence;
    let sample = stored.sampled.and_then(|sampled| sampled.sample.get());
    let compared = sample.map(|sample| compare(store, stored.map, sample)).transpose();
    let compared = compared.unwrap_or_else(|error| {
        tracing::warn!(%error, "a checkpoint could not be audited");
        None
    });
    let mut state = lock(shared);
    if let Some(sampled) = stored.sampled {
        state.ledger.copied(sequence, &sampled.copied);
    }
    let is_full = stored.dirty.len() == layout.pages();
    // It was captured before the recorder knew of the mismatch.
    let is_doubtful = state.needs_full && !is_full;
    state.needs_full &= !is_full;
    if let (Some(_), Some(sampled)) = (&compared, stored.sampled) {
        state.walked_to(sampled.to);
    }
    drop(state);
    if is_doubtful && let Err(error) = store.catalogue().mark_doubtful(machine, sequence..=sequence) {
        tracing::error!(%error, sequence, "a doubtful checkpoint could not be marked");
    }
    compared.and_then(|compared| note(store, machine, layout, shared, &compared, sequence)).is_some()
}

/// Notes the outcome of a comparison with the machine's newest checkpoint. After a mismatch: records it, and returns
/// which checkpoints are doubtful.
pub(super) fn note(
    store: &Store,
    machine: MachineId,
    layout: &MemoryLayout,
    shared: &SharedAudit,
    compared: &Compared,
    newest: u64,
) -> Option<RangeInclusive<u64>> {
    let mut state = lock(shared);
    compared.same.iter().for_each(|index| state.ledger.proven(*index, newest));
    let from = compared.different.iter().map(|index| state.ledger.doubt_from(*index)).min()?;
    let is_new = state.mismatched(compared.different.len() as u64);
    drop(state);
    let mismatch = Mismatch { frames: &compared.different, doubtful: from..=newest, is_new };
    if let Err(error) = mismatch.record(store, machine, layout) {
        tracing::error!(%error, frames = compared.different.len(), "a mismatch of the audit could not be recorded");
    }
    Some(from..=newest)
}

/// Frames that are not what the newest checkpoint says.
struct Mismatch<'a> {
    frames: &'a [u64],
    /// Sequence numbers of the checkpoints since a frame of them was last proven.
    doubtful: RangeInclusive<u64>,
    /// Whether no other mismatch is being dealt with.
    is_new: bool,
}

impl Mismatch<'_> {
    fn record(&self, store: &Store, machine: MachineId, layout: &MemoryLayout) -> Result<()> {
        let catalogue = store.catalogue();
        let marked = catalogue.mark_doubtful(machine, self.doubtful.clone())?;
        let (from, to) = (*self.doubtful.start(), *self.doubtful.end());
        let named = self.frames.iter().take(NAMED_MAX).filter_map(|index| layout.gfn(*index));
        let detail = json!({
            "frames": named.map(|gfn| gfn.0).collect::<Vec<_>>(),
            "mismatches": self.frames.len(),
            "doubtful_from": from,
            "doubtful_to": to,
            "marked": marked,
        });
        tracing::error!(machine = machine.0, %detail, "memory is not what the newest checkpoint says");
        catalogue.add_event(machine, KIND, EventSeverity::Error, &detail)?;
        if !self.is_new {
            return Ok(());
        }
        let all = catalogue.checkpoints(machine)?;
        let Some(first_bad) = all.iter().find(|record| record.sequence >= from).or(all.last()) else {
            return Ok(());
        };
        let is_good = |sequence: u64, verdict| sequence < first_bad.sequence && verdict == Verdict::Good;
        let ancestry = catalogue.ancestry(first_bad.id)?;
        let last_good =
            ancestry.iter().find(|record| is_good(record.sequence, record.verdict) && !record.doubtful);
        catalogue.add_incident(
            machine,
            &NewIncident {
                first_bad: first_bad.id,
                last_good: last_good.map(|record| record.id),
                kind: KIND.to_owned(),
                summary: format!(
                    "{} changed without being reported; {marked} checkpoints are doubtful",
                    match self.frames.len() {
                        1 => "1 frame".to_owned(),
                        frames => format!("{frames} frames"),
                    }
                ),
                detail,
                action: None,
            },
        )?;
        Ok(())
    }
}
