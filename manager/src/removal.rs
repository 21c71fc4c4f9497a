//! The removal of a machine with its history.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use retrovisor_snapshot::{PruneProgress, RemovalPlan, RemovalReport};

use crate::error::ManagerError;
use crate::lifecycle::{CommandKind, Rule, rule};
use crate::manager::{Manager, lock};

/// What [`Manager::remove`] would remove.
#[derive(Clone, Debug)]
pub struct PlannedRemoval {
    /// Of the store.
    pub history: RemovalPlan,
    /// The machine's folder with its overlays and logs, if there is one.
    pub folder: Option<PathBuf>,
}

impl Manager {
    /// What the removal of a machine would remove. Refuses a machine that has a process.
    pub fn plan_removal(&self, name: &str) -> Result<PlannedRemoval, ManagerError> {
        let status = self.status(name)?;
        if rule(status.state, CommandKind::Remove) == Rule::Refused {
            return Err(ManagerError::refused(name, &status, CommandKind::Remove));
        }
        let record = self.store().catalogue().machine(name)?;
        let folder = Some(self.runtime_dir(name)).filter(|folder| folder.exists());
        Ok(PlannedRemoval { history: self.store().plan_removal(record.id)?, folder })
    }

    /// Removes a machine that has no process: its history, overlays and logs. Nothing of it can be brought back.
    /// If `progress` stops it, the machine is still there, without a current checkpoint; removing it again goes on.
    pub fn remove(
        &self,
        name: &str,
        progress: &mut dyn FnMut(PruneProgress) -> ControlFlow<()>,
    ) -> Result<RemovalReport, ManagerError> {
        let _reservation = self.reserve(name, CommandKind::Remove, None)?;
        let record = self.store().catalogue().machine(name)?;
        let report = self.store().remove_machine(record.id, progress)?;
        let folder = self.runtime_dir(name);
        if !report.stopped
            && let Err(source) = std::fs::remove_dir_all(&folder)
            && source.kind() != io::ErrorKind::NotFound
        {
            let doing = format!("the history of {name} is removed, but {} is not", folder.display());
            return Err(ManagerError::Io { doing, source });
        }
        lock(&self.unreachable).remove(name);
        self.forget_ended(name);
        Ok(report)
    }
}
