//! What a self that died between capture and commit left in the disks.

use std::collections::HashSet;

use retrovisor_guest::fact::Value;
use retrovisor_guest::{Machine, MachineState};
use retrovisor_snapshot::{Catalogue, MachineId};

use super::error::CareError;

/// The disk snapshots that the machine's checkpoints need.
const NEEDED: &str = "SELECT DISTINCT json_extract(value, '$.reference') FROM state \
    JOIN checkpoint c ON c.id = state.checkpoint, json_each(state.disks) WHERE c.machine = ?1";

/// Lets go of the disk snapshots that no checkpoint refers to. Returns how many there were.
pub(super) fn release(
    machine: &mut dyn Machine,
    catalogue: &Catalogue,
    id: MachineId,
) -> Result<usize, CareError> {
    let mut disks = machine.retained_disks()?;
    if disks.is_empty() {
        return Ok(0);
    }
    let rows = catalogue.query(NEEDED, &[Value::Integer(id.0)], usize::MAX)?;
    if rows.truncated {
        // Better to leave something lying about than to take away what is needed.
        return Ok(0);
    }
    let needed: HashSet<&str> = rows.rows.iter().filter_map(|row| row.first()?.as_str()).collect();
    disks.retain(|disk| !needed.contains(disk.reference.as_str()));
    let count = disks.len();
    machine.release_state(&MachineState { disks, ..MachineState::default() })?;
    Ok(count)
}
