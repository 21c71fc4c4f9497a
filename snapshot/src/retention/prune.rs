use std::collections::HashSet;
use std::ops::ControlFlow;

use serde::Serialize;
use serde_json::json;

use super::compact::CompactReport;
use super::merge::{Orphan, Tree};
use super::options::CompactOptions;
use super::plan::PrunePlan;
use super::progress::{PruneProgress, PruneStep};
use crate::catalogue::{NewOperation, OperationKind, OperationStatus, Reparented};
use crate::error::{Error, Result};
use crate::id::{CheckpointId, OperationId};
use crate::page_map::PageMap;
use crate::store::{Store, changes_hash, keyframe};

/// Checkpoints removed in one transaction.
const BATCH: usize = 32;

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Checkpoints that were removed.
    pub checkpoints: u64,
    /// Checkpoints of the plan that stayed, because a machine was moved to them meanwhile, or they were pinned.
    pub passed_over: u64,
    /// Whether it was stopped. Completed steps stay done; the rest is unchanged.
    pub stopped: bool,
    /// The recorded operations, one for each machine.
    pub operations: Vec<OperationId>,
    /// The compaction after it.
    pub compaction: CompactReport,
}

impl Store {
    /// Carries out a plan, then frees the space. The contents of every checkpoint that stays are unchanged at each
    /// instant; machines are recorded, and readers read, meanwhile. `progress` stops it between two steps with
    /// [`ControlFlow::Break`].
    pub fn prune(
        &self,
        plan: &PrunePlan,
        options: &CompactOptions,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<PruneReport> {
        let _alone = self.maintain()?;
        let _space = self.lend_reserve()?;
        let mut report = PruneReport::default();
        let mut operations = Vec::new();
        for machine in plan.machines.iter().filter(|machine| !machine.removed.is_empty()) {
            let position = self.catalogue().position(machine.id)?;
            operations.push(self.catalogue().begin(&NewOperation {
                machine: machine.id,
                kind: OperationKind::Prune,
                status: OperationStatus::Started,
                before: position,
                after: position,
                undoes: None,
                detail: &json!({ "policy": plan.policy, "planned": machine.removed.len() }),
                half_written: None,
            })?);
        }
        let done = self.remove_planned(plan, &mut report, progress);
        for operation in &operations {
            let note = match &done {
                Ok(()) => json!({ "removed": report.checkpoints, "stopped": report.stopped }),
                Err(error) => json!({ "removed": report.checkpoints, "error": error.to_string() }),
            };
            self.catalogue().end_in_place(*operation, done.is_ok(), &note)?;
        }
        done?;
        report.operations = operations;
        if !report.stopped {
            report.compaction = self.compact_alone(options, progress)?;
            report.stopped = report.compaction.stopped;
        }
        Ok(report)
    }

    fn remove_planned(
        &self,
        plan: &PrunePlan,
        report: &mut PruneReport,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        let total = plan.removed().count() as u64;
        // Checkpoints that may no longer be removed, because of operations since the plan, stay.
        let mut held: HashSet<CheckpointId> = HashSet::new();
        for machine in self.catalogue().machines()? {
            held.extend(machine.position.map(|position| position.checkpoint));
            held.extend(self.catalogue().pinned(machine.id)?);
        }
        // Bad ones are removed last.
        for special in [false, true] {
            let group =
                plan.removed().filter(|removed| removed.quarantined == special).map(|removed| removed.id);
            let group: HashSet<CheckpointId> = group.filter(|id| !held.contains(id)).collect();
            if !report.stopped && !group.is_empty() {
                self.remove_group(&group, total, report, progress)?;
            }
        }
        report.passed_over = if report.stopped { 0 } else { total - report.checkpoints };
        Ok(())
    }

    fn remove_group(
        &self,
        removed: &HashSet<CheckpointId>,
        total: u64,
        report: &mut PruneReport,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        let tree = Tree::read(self)?;
        let orphans = tree.orphans(removed);
        for (done, orphan) in orphans.iter().enumerate() {
            let at = PruneProgress { step: PruneStep::Merge, done: done as u64, total: orphans.len() as u64 };
            if progress(at).is_break() {
                report.stopped = true;
                return Ok(());
            }
            match self.reparent_orphan(orphan) {
                // An unreadable checkpoint cannot be joined: it keeps its parent, and its parents stay.
                Err(Error::Damaged(damage)) => tracing::warn!(%damage, "a checkpoint stays with its parents"),
                other => other?,
            }
        }
        // Children before their parents.
        let mut newest_first: Vec<CheckpointId> = removed.iter().copied().collect();
        newest_first.sort_unstable_by(|a, b| b.cmp(a));
        for part in newest_first.chunks(BATCH) {
            let at = PruneProgress { step: PruneStep::Remove, done: report.checkpoints, total };
            if progress(at).is_break() {
                report.stopped = true;
                return Ok(());
            }
            report.checkpoints += self.catalogue().remove_checkpoints(part)?;
            self.forget_maps(part);
        }
        Ok(())
    }

    /// Makes the nearest ancestor that stays the parent of a checkpoint whose parents are removed.
    fn reparent_orphan(&self, orphan: &Orphan) -> Result<()> {
        // Read again: its ancestors may be nearer to a full map by now.
        let link = self.catalogue().link(orphan.checkpoint.checkpoint)?;
        let layout = self.catalogue().machine_by_id(link.machine)?.identity.layout;
        let before = match &orphan.ancestor {
            Some(ancestor) => self.map(ancestor.checkpoint)?,
            None => PageMap::zero(usize::try_from(layout.pages()).unwrap_or(usize::MAX)).into(),
        };
        let map = self.map(link.checkpoint)?;
        // A page that changed and changed back is no change.
        let changes: Vec<_> = before
            .diff(&map)
            .filter_map(|(index, _, content)| Some((layout.gfn(index as u64)?, content)))
            .collect();
        let full = if orphan.loses_keyframe(&link) { Some(keyframe(&self.key, &map)?) } else { None };
        let (keyframe_distance, keyframe_rows) = match &orphan.ancestor {
            _ if full.is_some() || link.keyframe_distance == 0 => (0, 0),
            Some(ancestor) => {
                let ancestor = self.catalogue().link(ancestor.checkpoint)?;
                (ancestor.keyframe_distance + 1, ancestor.keyframe_rows + changes.len() as u64)
            }
            None => {
                return Err(Error::Invalid {
                    what: "chain",
                    why: "a first checkpoint without a full map".into(),
                });
            }
        };
        let parent = orphan.ancestor.as_ref().map(|ancestor| ancestor.checkpoint);
        let gone = orphan.gone.iter().map(|link| link.checkpoint).collect();
        let disks = self.reparented_disks(link.checkpoint, &gone, parent)?;
        self.catalogue().reparent(&Reparented {
            checkpoint: link.checkpoint,
            old_parent: link.parent,
            parent,
            changes_hash: changes_hash(&self.key, parent, &changes),
            changes: &changes,
            keyframe: full.as_ref(),
            keyframe_distance,
            keyframe_rows,
            disks: &disks,
        })?;
        Ok(())
    }
}
