use std::collections::HashSet;

use retrovisor_guest::MemoryLayout;

use super::page_plan::PagePlan;
use crate::catalogue::CheckpointRecord;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId};
use crate::store::Store;

/// The effect of a rollback.
#[derive(Clone, Debug, PartialEq)]
pub struct RollbackPlan {
    /// The checkpoint that the machine's state is based on; what the guest did since is checkpointed first.
    pub current: CheckpointRecord,
    /// The target.
    pub target: CheckpointRecord,
    /// Frames that differ between the two, without those that the guest wrote since the last checkpoint.
    pub pages: u64,
    /// The checkpoints that will be on another timeline, newest first. Nothing is lost: undo returns to them.
    pub left_behind: Vec<CheckpointRecord>,
}

impl Store {
    /// The effect that a rollback of a machine would have. Only reads the store, so it can be called with or without a
    /// recorder of the machine.
    pub fn plan_rollback(&self, machine: MachineId, target: CheckpointId) -> Result<RollbackPlan> {
        let catalogue = self.catalogue();
        let record = catalogue.machine_by_id(machine)?;
        let position = record.position.ok_or_else(|| Error::NotFound {
            what: "checkpoint",
            name: format!("of {}", record.name),
            help: "the machine has none yet; take one with `retrovisor checkpoint`",
        })?;
        let target = self.rollback_target(machine, &record.name, &record.identity.layout, target)?;
        let kept: HashSet<_> = catalogue.ancestry(target.id)?.into_iter().map(|record| record.id).collect();
        let mut left_behind = catalogue.ancestry(position.checkpoint)?;
        left_behind.retain(|record| !kept.contains(&record.id));
        let (from, to) = (self.map(position.checkpoint)?, self.map(target.id)?);
        Ok(RollbackPlan {
            current: catalogue.checkpoint(position.checkpoint)?,
            pages: PagePlan::difference(&from, &to).pages(),
            target,
            left_behind,
        })
    }

    /// The record of a rollback's target, which must be undamaged, and of a machine with the same memory layout.
    pub(super) fn rollback_target(
        &self,
        machine: MachineId,
        name: &str,
        layout: &MemoryLayout,
        target: CheckpointId,
    ) -> Result<CheckpointRecord> {
        let catalogue = self.catalogue();
        let record =
            catalogue.checkpoint(target).map_err(|error| catalogue.explain_missing(target, error))?;
        catalogue.must_be_whole(target, &record.name)?;
        if record.machine != machine {
            let other = catalogue.machine_by_id(record.machine)?;
            if other.identity.layout != *layout {
                let why = format!(
                    "{record} belongs to machine {}, whose memory layout differs from that of {name}",
                    other.name
                );
                return Err(Error::Invalid { what: "target", why });
            }
        }
        Ok(record)
    }
}
