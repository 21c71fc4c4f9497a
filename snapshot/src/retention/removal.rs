use std::ops::ControlFlow;

use serde::Serialize;

use super::compact::CompactReport;
use super::options::CompactOptions;
use super::progress::{PruneProgress, PruneStep};
use crate::error::Result;
use crate::id::MachineId;
use crate::store::Store;

/// Checkpoints removed in one transaction.
const BATCH: usize = 32;

/// What the removal of a machine would remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemovalPlan {
    /// Checkpoints, on all timelines, pinned ones included.
    pub checkpoints: u64,
    /// Bytes that they added to the store. Contents that another machine uses, too, are not freed.
    pub stored_bytes: u64,
    /// Machines that were branched from it. They do not need it.
    pub branches: Vec<String>,
}

/// What the removal of a machine did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RemovalReport {
    /// Checkpoints that were removed.
    pub checkpoints: u64,
    /// Whether it was stopped before the end. The machine has no current checkpoint then, and removing it again
    /// continues.
    pub stopped: bool,
    /// The compaction after it.
    pub compaction: CompactReport,
}

impl Store {
    /// What [`Store::remove_machine`] would remove.
    pub fn plan_removal(&self, machine: MachineId) -> Result<RemovalPlan> {
        let checkpoints = self.catalogue().checkpoints(machine)?;
        Ok(RemovalPlan {
            checkpoints: checkpoints.len() as u64,
            stored_bytes: checkpoints.iter().map(|record| record.stored_bytes).sum(),
            branches: self.catalogue().branches_of(machine)?,
        })
    }

    /// Removes a machine with all that is known of it, and frees the space of contents that no other machine uses.
    /// Nobody may record the machine meanwhile. Fails, and changes nothing, while a branch is made from it, and when
    /// another machine was taken to one of its checkpoints.
    ///
    /// Checkpoints go in batches, newest first; `progress` stops it between two of them with [`ControlFlow::Break`].
    /// Every pack that has garbage is rewritten, so that no memory of the guest stays in the files.
    pub fn remove_machine(
        &self,
        machine: MachineId,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<RemovalReport> {
        let _alone = self.maintain()?;
        let _space = self.lend_reserve()?;
        let catalogue = self.catalogue();
        catalogue.begin_removal(machine)?;
        let mut newest_first: Vec<_> =
            catalogue.checkpoints(machine)?.into_iter().map(|record| record.id).collect();
        newest_first.sort_unstable_by(|a, b| b.cmp(a));
        let total = newest_first.len() as u64;
        let mut report = RemovalReport::default();
        for batch in newest_first.chunks(BATCH) {
            let at = PruneProgress { step: PruneStep::Remove, done: report.checkpoints, total };
            if progress(at).is_break() {
                report.stopped = true;
                return Ok(report);
            }
            report.checkpoints += catalogue.remove_checkpoints(batch)?;
            self.forget_maps(batch);
        }
        catalogue.end_removal(machine)?;
        let options = CompactOptions { garbage_percent_min: 1, ..CompactOptions::default() };
        report.compaction = self.compact_alone(&options, progress)?;
        report.stopped = report.compaction.stopped;
        Ok(report)
    }
}
