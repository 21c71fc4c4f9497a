//! Names and processes that are reserved while a machine is brought up.

use retrovisor_guest::{ProcessIdentity, check_name};

use crate::actor::ActorHandle;
use crate::error::ManagerError;
use crate::lifecycle::{CommandKind, Lifecycle, Rule, rule};
use crate::manager::{Manager, lock};
use crate::status::MachineStatus;

/// A name, and a process where there is one already, that no other caller can take until this is dropped.
pub(crate) struct Reservation<'a> {
    manager: &'a Manager,
    name: &'a str,
    process: Option<ProcessIdentity>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut reservations = lock(&self.manager.reservations);
        reservations.names.remove(self.name);
        if let Some(process) = &self.process {
            reservations.processes.remove(process);
        }
    }
}

impl Manager {
    /// Reserves a name for a command that brings a machine up or changes one that has no actor, until the answer is dropped.
    /// Refuses what the machine's state does not allow, and a process that is managed under another name.
    pub(crate) fn reserve<'a>(
        &'a self,
        name: &'a str,
        command: CommandKind,
        process: Option<&ProcessIdentity>,
    ) -> Result<Reservation<'a>, ManagerError> {
        check_name("machine", name)?;
        self.wait_for_lost(name);
        // A name that the store does not have is free.
        let status = self.known(name)?.map(|_| self.status(name)).transpose()?;
        let status = status.unwrap_or_else(|| MachineStatus::without_actor(Lifecycle::Gone, "", 0, None));
        let mut reservations = lock(&self.reservations);
        if reservations.names.contains(name) || self.is_managed(name) {
            return Err(ManagerError::Exists { machine: name.to_owned() });
        }
        // A driver that does not return has the machine, whatever its state allows otherwise.
        if self.actors().get(name).is_some_and(ActorHandle::is_alive) {
            return Err(ManagerError::refused(name, &status, command));
        }
        if rule(status.state, command) == Rule::Refused {
            return Err(ManagerError::refused(name, &status, command));
        }
        if let Some(process) = process {
            let other = self.actors().iter().find_map(|(other, actor)| {
                (actor.is_alive() && actor.status().process.as_ref() == Some(process)).then(|| other.clone())
            });
            let other =
                other.or_else(|| reservations.processes.contains(process).then(|| "another one".to_owned()));
            if let Some(machine) = other {
                return Err(ManagerError::Managed { pid: process.pid, machine });
            }
            reservations.processes.insert(process.clone());
        }
        reservations.names.insert(name.to_owned());
        Ok(Reservation { manager: self, name, process: process.cloned() })
    }
}
