//! What follows from a comparison: proven frames are noted, a mismatch is recorded.

use std::ops::RangeInclusive;

use retrovisor_guest::MemoryLayout;
use serde_json::{Value, json};

use super::compare::Compared;
use super::status::SharedAudit;
use crate::catalogue::{EventSeverity, NewIncident, Verdict};
use crate::error::Result;
use crate::id::MachineId;
use crate::mutex::lock;
use crate::store::Store;

/// The kind of the events and incidents of the audit.
const KIND: &str = "capture";
/// Frames or blocks that an event names, at most.
const NAMED_MAX: usize = 64;

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
    let differing = Differing::Frames(layout, &compared.different);
    record(store, machine, differing, from..=newest, is_new);
    Some(from..=newest)
}

/// Notes which blocks of a disk differ from the machine's newest checkpoint. If there are any: records it, and returns
/// which checkpoints are doubtful.
pub(super) fn note_blocks(
    store: &Store,
    machine: MachineId,
    shared: &SharedAudit,
    disk: (&str, u64),
    different: &[u64],
    newest: u64,
) -> Option<RangeInclusive<u64>> {
    let (name, blocks) = disk;
    let mut state = lock(shared);
    let ledger = state.disk(name, blocks);
    let from = different.iter().map(|block| ledger.doubt_from(*block)).min()?;
    ledger.mismatched(different.len() as u64);
    let is_new = !std::mem::replace(&mut state.needs_full_disks, true);
    drop(state);
    record(store, machine, Differing::Blocks(name, different), from..=newest, is_new);
    Some(from..=newest)
}

/// What is not as the newest checkpoint says.
#[derive(Clone, Copy)]
enum Differing<'a> {
    /// Indices of frames.
    Frames(&'a MemoryLayout, &'a [u64]),
    /// Blocks of a disk.
    Blocks(&'a str, &'a [u64]),
}

impl Differing<'_> {
    fn count(self) -> usize {
        match self {
            Self::Frames(_, which) | Self::Blocks(_, which) => which.len(),
        }
    }

    /// How many of what, in words.
    fn words(self) -> String {
        match (self, self.count()) {
            (Self::Frames(..), 1) => "1 frame".to_owned(),
            (Self::Frames(..), count) => format!("{count} frames"),
            (Self::Blocks(disk, _), 1) => format!("1 block of disk {disk}"),
            (Self::Blocks(disk, _), count) => format!("{count} blocks of disk {disk}"),
        }
    }

    fn detail(self) -> Value {
        match self {
            Self::Frames(layout, frames) => {
                let named = frames.iter().take(NAMED_MAX).filter_map(|index| layout.gfn(*index));
                json!({ "frames": named.map(|gfn| gfn.0).collect::<Vec<_>>() })
            }
            Self::Blocks(disk, blocks) => {
                json!({ "disk": disk, "blocks": blocks.iter().take(NAMED_MAX).collect::<Vec<_>>() })
            }
        }
    }
}

/// Records a mismatch. `doubtful` are the checkpoints since one of what differs was last proven; `is_new`: no other
/// mismatch of this kind is being dealt with.
fn record(
    store: &Store,
    machine: MachineId,
    differing: Differing<'_>,
    doubtful: RangeInclusive<u64>,
    is_new: bool,
) {
    let recorded = try_record(store, machine, differing, doubtful, is_new);
    if let Err(error) = recorded {
        let what = differing.words();
        tracing::error!(%error, what, "a mismatch of the audit could not be recorded");
    }
}

fn try_record(
    store: &Store,
    machine: MachineId,
    differing: Differing<'_>,
    doubtful: RangeInclusive<u64>,
    is_new: bool,
) -> Result<()> {
    let catalogue = store.catalogue();
    let (from, to) = (*doubtful.start(), *doubtful.end());
    let marked = catalogue.mark_doubtful(machine, doubtful)?;
    let mut detail = differing.detail();
    detail["mismatches"] = differing.count().into();
    detail["doubtful_from"] = from.into();
    detail["doubtful_to"] = to.into();
    detail["marked"] = marked.into();
    tracing::error!(machine = machine.0, %detail, "the guest is not what the newest checkpoint says");
    catalogue.add_event(machine, KIND, EventSeverity::Error, &detail)?;
    if !is_new {
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
    let summary =
        format!("{} changed without being reported; {marked} checkpoints are doubtful", differing.words());
    let incident = NewIncident {
        first_bad: first_bad.id,
        last_good: last_good.map(|record| record.id),
        kind: KIND.to_owned(),
        summary,
        detail,
        action: None,
    };
    catalogue.add_incident(machine, &incident)?;
    Ok(())
}
