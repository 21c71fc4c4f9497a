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
        let record = self.target_record(id)?;
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

    /// The record of a target, which must be of a machine with the same memory.
    pub(super) fn target_record(&self, id: CheckpointId) -> Result<CheckpointRecord> {
        let catalogue = self.store.catalogue();
        let record = catalogue.checkpoint(id).map_err(|error| catalogue.explain_missing(id, error))?;
        catalogue.must_be_whole(id, &record.name)?;
        if record.machine != self.machine {
            let other = self.store.catalogue().machine_by_id(record.machine)?;
            if other.identity.layout != self.layout {
                let why = format!(
                    "{record} belongs to machine {}, whose memory lies differently from that of {}",
                    other.name, self.name
                );
                return Err(Error::Invalid { what: "target", why });
            }
        }
        Ok(record)
    }
}
