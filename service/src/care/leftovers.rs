//! What a self that died between capture and commit left in the disks.

use retrovisor_guest::{Machine, MachineState};
use retrovisor_snapshot::{Catalogue, MachineId};

use super::error::CareError;

/// Lets go of the disk snapshots that no checkpoint refers to. Returns how many there were.
pub(super) fn release(
    machine: &mut dyn Machine,
    catalogue: &Catalogue,
    id: MachineId,
) -> Result<usize, CareError> {
    let mut disks = machine.kept_disks()?;
    if disks.is_empty() {
        return Ok(0);
    }
    let referenced = catalogue.referenced_disk_snapshots(id)?;
    disks.retain(|disk| !referenced.contains(&disk.reference));
    let count = disks.len();
    machine.release_state(&MachineState { disks, ..MachineState::default() })?;
    Ok(count)
}
