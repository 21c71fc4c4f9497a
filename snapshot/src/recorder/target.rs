use std::sync::Arc;

use retrovisor_guest::{Machine, MachineError, MachineState};

use super::engine::Recorder;
use crate::catalogue::CheckpointRecord;
use crate::disk::DiskRestore;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::page_map::PageMap;

/// The checkpoint that a machine moves to, read before the pause.
pub(super) struct Target {
    pub(super) record: CheckpointRecord,
    pub(super) map: Arc<PageMap>,
    pub(super) state: MachineState,
    pub(super) disks: DiskRestore,
}

impl Recorder {
    /// Reads a target.
    pub(super) fn target(&self, machine: &mut dyn Machine, id: CheckpointId) -> Result<Target> {
        let record = self.store.rollback_target(self.machine, &self.name, &self.layout, id)?;
        let state = self.store.state(id)?;
        let vcpus = machine.identity().vcpus;
        // A driver that does not report registers checks them itself.
        if !state.vcpus.is_empty() && state.vcpus.len() != vcpus as usize {
            return Err(Error::Machine(MachineError::Mismatch {
                what: "number of vCPUs".into(),
                expected: state.vcpus.len().to_string(),
                found: vcpus.to_string(),
            }));
        }
        let disks = DiskRestore::find(&self.store, machine, id, &state)?;
        Ok(Target { record, map: self.store.map(id)?, state, disks })
    }
}
