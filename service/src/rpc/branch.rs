//! Second machines from checkpoints.

use std::time::Instant;

use retrovisor_guest::BLOCK_SIZE;
use retrovisor_guest::PAGE_SIZE;
use retrovisor_proto::v1::{BranchDisk, BranchReport, BranchRequest, BranchResponse};
use retrovisor_snapshot::BranchProgress;

use super::stream::{Caller, progress};
use super::{Services, convert};
use crate::care::{BranchOutlook, CareError};

/// What is branched from when nothing is named: where the machine stands.
const ORIGIN_DEFAULT: &str = "current";

impl Services {
    /// Makes a branch, or says what it would be.
    pub(super) fn branch_now(
        &self,
        request: &BranchRequest,
        to: &Caller<BranchResponse>,
    ) -> Result<(), CareError> {
        let begun = Instant::now();
        let wanted = if request.checkpoint.is_empty() { ORIGIN_DEFAULT } else { request.checkpoint.as_str() };
        let origin = self.resolve(&request.machine, wanted)?;
        let new = &request.new_machine;
        let outlook = self.care.plan_branch(new, origin.id)?;
        let mut report = self.outlined(new, &outlook)?;
        report.dry_run = request.dry_run;
        if !request.dry_run {
            let mut tell =
                |BranchProgress { done, total }| progress(to, BranchResponse { done, total, report: None });
            let begun_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let branched = self.care.branch(new, &outlook, request.paused, &mut tell)?;
            let store = self.care.store();
            report.branch_us = begun_us.saturating_add(branched.branch_us);
            report.first = Some(convert::checkpoint(store, &branched.first)?);
            report.branch = Some(convert::machine(&self.care, &store.catalogue().machine(new)?)?);
        }
        // The caller may have gone: the machine is there all the same.
        let _ = to.blocking_send(Ok(BranchResponse { report: Some(report), ..BranchResponse::default() }));
        Ok(())
    }

    fn outlined(&self, new: &str, outlook: &BranchOutlook) -> Result<BranchReport, CareError> {
        let plan = &outlook.plan;
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
            origin: Some(convert::checkpoint(self.care.store(), &plan.origin)?),
            new_machine: new.to_owned(),
            memory_bytes: plan.machine.identity.layout.bytes(),
            data_bytes: plan.data_pages * PAGE_SIZE as u64,
            disks: disks.collect(),
            networks: outlook.networks.clone(),
            warning: outlook.warning.unwrap_or_default().to_owned(),
            ..BranchReport::default()
        })
    }
}
