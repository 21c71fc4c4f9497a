use retrovisor_snapshot::{CheckpointRecord, RollbackKind};

use crate::error::ManagerError;
use crate::lifecycle::{CommandKind, Lifecycle, Rule, rule};
use crate::manager::Manager;
use crate::rollback::Rollback;
use crate::spec::MachineSpec;

impl Manager {
    /// What a rollback would do. Changes nothing; what the rollback itself would refuse is refused.
    pub fn plan_rollback(&self, name: &str, target: CheckpointRecord) -> Result<Rollback, ManagerError> {
        let record = self.store.catalogue().machine(name)?;
        let status = self.status(name)?;
        let new_process = status.state == Lifecycle::Gone;
        if new_process {
            MachineSpec::from_runtime(name, &record.runtime)?.launch()?;
        } else if self.is_managed(name) && rule(status.state, CommandKind::Rollback) == Rule::Refused {
            return Err(ManagerError::refused(name, &status, CommandKind::Rollback));
        }
        let plan = self.store.plan_rollback(record.id, target.id)?;
        Ok(Rollback {
            kind: RollbackKind::Rollback,
            operation: String::new(),
            current: Some(plan.current),
            target,
            steps: u32::try_from(plan.left_behind.len()).unwrap_or(u32::MAX),
            pages_written: plan.pages,
            rollback_us: 0,
            new_process,
            image_matches: None,
        })
    }
}
