//! New machines from checkpoints of others.

use std::time::Instant;

use retrovisor_guest::BLOCK_SIZE;
use retrovisor_guest::PAGE_SIZE;
use retrovisor_manager::{ManagerError, PlannedBranch};
use retrovisor_proto::v1::{BranchDisk, BranchReport, BranchRequest, BranchResponse};
use retrovisor_snapshot::BranchProgress;

use super::stream::Caller;
use super::{Services, convert};

/// The checkpoint that is branched from when none is named.
const ORIGIN_DEFAULT: &str = "current";

impl Services {
    /// Makes a branch, or reports what it would be.
    pub(super) fn branch_now(
        &self,
        request: &BranchRequest,
        to: &Caller<BranchResponse>,
    ) -> Result<(), ManagerError> {
        let begun = Instant::now();
        let wanted = if request.checkpoint.is_empty() { ORIGIN_DEFAULT } else { request.checkpoint.as_str() };
        let origin = self.resolve(&request.machine, wanted)?;
        let new = &request.new_machine;
        let planned = self.manager.plan_branch(new, origin.id)?;
        let mut report = self.report(new, &planned)?;
        report.dry_run = request.dry_run;
        if !request.dry_run {
            let mut progress =
                |BranchProgress { done, total }| to.progress(BranchResponse { done, total, report: None });
            let begun_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let branched = self.manager.branch(new, &planned, request.paused, &mut progress)?;
            let store = self.manager.store();
            report.branch_us = begun_us.saturating_add(branched.branch_us);
            report.first = Some(convert::checkpoint(store, &branched.first)?);
            report.branch = Some(convert::machine(&self.manager, &store.catalogue().machine(new)?)?);
        }
        to.send(BranchResponse { report: Some(report), ..BranchResponse::default() });
        Ok(())
    }

    fn report(&self, new: &str, planned: &PlannedBranch) -> Result<BranchReport, ManagerError> {
        let plan = &planned.plan;
        let disks = plan.disks.iter().map(|disk| BranchDisk {
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            base: disk
                .base
                .as_ref()
                .and_then(|base| base.files.first())
                .map(|file| file.path.clone())
                .unwrap_or_default(),
            written_bytes: disk.written_blocks * BLOCK_SIZE as u64,
        });
        Ok(BranchReport {
            origin: Some(convert::checkpoint(self.manager.store(), &plan.origin)?),
            new_machine: new.to_owned(),
            memory_bytes: plan.machine.identity.layout.bytes(),
            data_bytes: plan.data_pages * PAGE_SIZE as u64,
            disks: disks.collect(),
            networks: planned.networks.clone(),
            warning: planned.warning.clone().unwrap_or_default(),
            ..BranchReport::default()
        })
    }
}
