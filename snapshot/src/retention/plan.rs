use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use super::policy::{Period, RetentionPolicy};
use crate::catalogue::{CheckpointRecord, MachineRecord, OperationStatus, Verdict};
use crate::clock;
use crate::error::Result;
use crate::id::{CheckpointId, MachineId};
use crate::store::Store;

/// The effect of a prune. A plan changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrunePlan {
    /// The policy it follows.
    pub policy: RetentionPolicy,
    /// For each machine what is removed and what stays.
    pub machines: Vec<MachinePrune>,
    /// What is freed.
    pub estimate: PruneEstimate,
}

/// What is removed and what stays of one machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachinePrune {
    /// The machine.
    pub id: MachineId,
    /// Its name.
    pub machine: String,
    /// Checkpoints that stay and why, in the order of taking.
    pub kept: Vec<Kept>,
    /// Checkpoints that are removed, in this order: bad ones last.
    pub removed: Vec<Removed>,
}

/// A checkpoint that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The number that joins the tables.
    pub id: CheckpointId,
    /// The short id.
    pub name: String,
    /// Its number among the machine's checkpoints.
    pub sequence: u64,
    /// Every rule that keeps it.
    pub reasons: Vec<KeepReason>,
}

/// A checkpoint that is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The number that joins the tables.
    pub id: CheckpointId,
    /// The short id.
    pub name: String,
    /// Its number among the machine's checkpoints.
    pub sequence: u64,
    /// When it was taken: milliseconds since 1970 UTC.
    pub taken_at_ms: i64,
    /// A name given by the user.
    pub label: Option<String>,
    /// The detectors' verdict.
    pub verdict: Verdict,
    /// Whether it is bad or belongs to an incident: then it is among the last to be removed.
    pub quarantined: bool,
}

/// Why a checkpoint stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepReason {
    /// A machine's current state is based on it.
    Current,
    /// It is pinned.
    Pinned,
    /// It is among the newest.
    Last,
    /// It is kept for its hour.
    Hourly,
    /// It is kept for its day.
    Daily,
    /// It is kept for its week.
    Weekly,
    /// It is kept for its month.
    Monthly,
    /// It has a label.
    Labelled,
    /// It is the newest good one among a machine's current checkpoint and its ancestors.
    LastGood,
    /// An incident begins with it, or it is the last good one before an incident.
    Incident,
    /// It is bad, and kept for analysis.
    Quarantined,
    /// Undo or redo needs it.
    Undo,
}

/// What a prune and the compaction after it free, estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneEstimate {
    /// Checkpoints that are removed.
    pub checkpoints: u64,
    /// Contents that nothing refers to any more then, those of before included.
    pub contents: u64,
    /// Bytes of the packs that are theirs, by their share of their frames.
    pub garbage_bytes: u64,
    /// Bytes of these in packs that a compaction with default options rewrites: those that are freed at once.
    pub pack_bytes: u64,
    /// Bytes in the catalogue, by the number of removed rows. They are freed when the database is rewritten.
    pub catalogue_bytes: u64,
    /// Bytes that must be available meanwhile: a pack that is rewritten is on the disk twice, until the old one is
    /// removed. The reserve of the store counts as available.
    pub needed_bytes: u64,
}

impl Store {
    /// What the policy would remove, of one machine or of all. Reads every list of changes for the estimate.
    pub fn plan_prune(&self, policy: &RetentionPolicy, machine: Option<MachineId>) -> Result<PrunePlan> {
        let everywhere = self.catalogue().machines()?;
        let mut machines = Vec::new();
        for record in everywhere.iter().filter(|record| machine.is_none_or(|id| id == record.id)) {
            machines.push(self.plan_machine(policy, record, &everywhere)?);
        }
        let mut plan = PrunePlan { policy: policy.clone(), machines, estimate: PruneEstimate::default() };
        plan.estimate = self.estimate(&plan)?;
        Ok(plan)
    }

    fn plan_machine(
        &self,
        policy: &RetentionPolicy,
        machine: &MachineRecord,
        everywhere: &[MachineRecord],
    ) -> Result<MachinePrune> {
        let catalogue = self.catalogue();
        let all = catalogue.checkpoints(machine.id)?;
        let lost = catalogue.marked()?;
        let mut reasons: BTreeMap<CheckpointId, BTreeSet<KeepReason>> = BTreeMap::new();
        let mut keep = |id: CheckpointId, why: KeepReason| {
            reasons.entry(id).or_default().insert(why);
        };
        for position in everywhere.iter().filter_map(|machine| machine.position) {
            keep(position.checkpoint, KeepReason::Current);
        }
        for id in catalogue.pinned(machine.id)? {
            keep(id, KeepReason::Pinned);
        }
        for record in newest(&all, policy.keep_last.max(1)) {
            keep(record.id, KeepReason::Last);
        }
        for (period, count, why) in [
            (Period::Hour, policy.keep_hourly, KeepReason::Hourly),
            (Period::Day, policy.keep_daily, KeepReason::Daily),
            (Period::Week, policy.keep_weekly, KeepReason::Weekly),
            (Period::Month, policy.keep_monthly, KeepReason::Monthly),
        ] {
            for id in one_a_period(&all, &lost, period, count) {
                keep(id, why);
            }
        }
        if policy.keep_labelled {
            for record in all.iter().filter(|record| record.label.is_some()) {
                keep(record.id, KeepReason::Labelled);
            }
        }
        if let Some(position) = machine.position {
            let line = catalogue.ancestry(position.checkpoint)?;
            if let Some(good) = line.iter().find(|record| {
                record.verdict == Verdict::Good && !record.doubtful && !lost.contains(&record.id)
            }) {
                keep(good.id, KeepReason::LastGood);
            }
        }
        let oldest_ms = policy.keep_bad_days.map_or(i64::MIN, |days| {
            let days_ms = i64::try_from(days).unwrap_or(i64::MAX).saturating_mul(86_400_000);
            clock::now_ms().saturating_sub(days_ms)
        });
        let young: HashSet<CheckpointId> =
            all.iter().filter(|record| record.taken_at_ms >= oldest_ms).map(|record| record.id).collect();
        let mut special: HashSet<CheckpointId> = HashSet::new();
        for incident in catalogue.incidents(machine.id)? {
            for id in [Some(incident.first_bad), incident.last_good].into_iter().flatten() {
                special.insert(id);
                if young.contains(&id) {
                    keep(id, KeepReason::Incident);
                }
            }
        }
        for record in all.iter().filter(|record| record.verdict == Verdict::Bad) {
            special.insert(record.id);
            if young.contains(&record.id) {
                keep(record.id, KeepReason::Quarantined);
            }
        }
        for id in self.undo_targets(machine.id, policy.undo_depth)? {
            keep(id, KeepReason::Undo);
        }

        let mut kept = Vec::new();
        let mut removed = Vec::new();
        for record in all {
            match reasons.remove(&record.id) {
                Some(why) => kept.push(Kept {
                    id: record.id,
                    name: record.name,
                    sequence: record.sequence,
                    reasons: why.into_iter().collect(),
                }),
                None => removed.push(Removed {
                    quarantined: special.contains(&record.id),
                    id: record.id,
                    name: record.name,
                    sequence: record.sequence,
                    taken_at_ms: record.taken_at_ms,
                    label: record.label,
                    verdict: record.verdict,
                }),
            }
        }
        removed.sort_by_key(|removed| (removed.quarantined, removed.sequence));
        Ok(MachinePrune { id: machine.id, machine: machine.name.clone(), kept, removed })
    }

    /// Where undo and redo may go within the last `depth` operations, and what operations under way need.
    fn undo_targets(&self, machine: MachineId, depth: u64) -> Result<Vec<CheckpointId>> {
        let operations = self.catalogue().operations(machine)?;
        let depth = usize::try_from(depth).unwrap_or(usize::MAX);
        let moved = operations.iter().rev().filter(|operation| operation.kind.moves());
        let done = moved.clone().filter(|operation| operation.status == OperationStatus::Done).take(depth);
        let under_way = moved.filter(|operation| {
            operation.status == OperationStatus::Started || operation.half_written.is_some()
        });
        let ends = done.chain(under_way).flat_map(|operation| [operation.before, operation.after]);
        Ok(ends.flatten().map(|position| position.checkpoint).collect())
    }
}

impl PrunePlan {
    /// All checkpoints to be removed, machine by machine, in order.
    pub(super) fn removed(&self) -> impl Iterator<Item = &Removed> {
        self.machines.iter().flat_map(|machine| &machine.removed)
    }
}

fn newest(all: &[CheckpointRecord], count: u64) -> &[CheckpointRecord] {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    &all[all.len().saturating_sub(count)..]
}

/// The newest checkpoint that is neither bad nor lost of each of the last `count` periods that have one.
fn one_a_period(
    all: &[CheckpointRecord],
    lost: &BTreeSet<CheckpointId>,
    period: Period,
    count: u64,
) -> Vec<CheckpointId> {
    let mut before = None;
    let mut found = Vec::new();
    let mut sorted: Vec<&CheckpointRecord> =
        all.iter().filter(|record| record.verdict != Verdict::Bad && !lost.contains(&record.id)).collect();
    sorted.sort_by_key(|record| (record.taken_at_ms, record.sequence));
    for record in sorted.into_iter().rev() {
        if found.len() as u64 >= count {
            break;
        }
        let number = period.number(record.taken_at_ms);
        if before != Some(number) {
            before = Some(number);
            found.push(record.id);
        }
    }
    found
}
