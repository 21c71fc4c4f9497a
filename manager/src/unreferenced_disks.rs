//! Disk snapshots that a daemon left behind when it died between capture and commit.

use std::collections::HashSet;

use retrovisor_guest::fact::Value;
use retrovisor_guest::{Machine, MachineState};
use retrovisor_snapshot::{Catalogue, MachineId};

use crate::error::ManagerError;

/// The disk snapshots that the machine's checkpoints refer to.
const REFERENCED: &str = "SELECT DISTINCT json_extract(value, '$.reference') FROM state \
    JOIN checkpoint c ON c.id = state.checkpoint, json_each(state.disks) WHERE c.machine = ?1";

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
    let rows = catalogue.query(REFERENCED, &[Value::Integer(id.0)], usize::MAX)?;
    if rows.truncated {
        // Keeping too many is safe; releasing one that is referred to is not.
        return Ok(0);
    }
    let referenced: HashSet<&str> = rows.rows.iter().filter_map(|row| row.first()?.as_str()).collect();
    disks.retain(|disk| !referenced.contains(disk.reference.as_str()));
    let count = disks.len();
    machine.release_state(&MachineState { disks, ..MachineState::default() })?;
    Ok(count)
}
