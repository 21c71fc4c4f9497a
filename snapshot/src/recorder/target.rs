use std::sync::Arc;

use retrovisor_guest::{Machine, MachineError, MachineState};

use super::engine::Recorder;
use crate::catalogue::CheckpointRecord;
use crate::disk::DiskRoute;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::page_map::PageMap;

/// Where a machine is to go, read before the guest is stopped.
pub(super) struct Target {
    pub(super) record: CheckpointRecord,
    pub(super) map: Arc<PageMap>,
    pub(super) state: MachineState,
    pub(super) disks: DiskRoute,
}

impl Recorder {
    /// Reads a target.
    pub(super) fn target(&self, machine: &mut dyn Machine, id: CheckpointId) -> Result<Target> {
        let record = self.store.rollback_target(self.machine, &self.name, &self.layout, id)?;
        let state = self.store.state(id)?;
        let vcpus = machine.identity().vcpus;
        // A driver that cannot tell registers says nothing, and checks by itself.
        if !state.vcpus.is_empty() && state.vcpus.len() != vcpus as usize {
            return Err(Error::Machine(MachineError::Mismatch {
                what: "number of vCPUs".into(),
                expected: state.vcpus.len().to_string(),
                found: vcpus.to_string(),
            }));
        }
        let disks = DiskRoute::find(&self.store, machine, id, &state)?;
        Ok(Target { record, map: self.store.map(id)?, state, disks })
    }
}
