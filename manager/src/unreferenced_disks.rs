//! Disk snapshots that a daemon left behind when it died between capture and commit.

use retrovisor_guest::{Machine, MachineState};
use retrovisor_snapshot::{Catalogue, MachineId};

use crate::error::ManagerError;

/// Releases the disk snapshots that no checkpoint refers to. Returns how many there were.
pub(crate) fn release(
    machine: &mut dyn Machine,
    catalogue: &Catalogue,
    id: MachineId,
) -> Result<usize, ManagerError> {
    let mut disks = machine.retained_disks()?;
    if disks.is_empty() {
        return Ok(0);
    }
    let referenced = catalogue.referenced_disk_snapshots(id)?;
    disks.retain(|disk| !referenced.contains(&disk.reference));
    let count = disks.len();
    machine.release_state(&MachineState { disks, ..MachineState::default() })?;
    Ok(count)
}
