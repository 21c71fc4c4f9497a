use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use crate::id::{CheckpointId, MachineId, TimelineId};

/// Where a machine stands: it runs on from this checkpoint, in this timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The timeline that the next checkpoint will belong to.
    pub timeline: TimelineId,
    /// The checkpoint last taken or gone back to.
    pub checkpoint: CheckpointId,
}

/// Moves a machine.
pub(super) fn set_position(
    transaction: &Transaction<'_>,
    machine: MachineId,
    position: Position,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE machine SET timeline = ?2, checkpoint = ?3 WHERE id = ?1")?
        .execute(params![machine.0, position.timeline.0, position.checkpoint.0])?;
    Ok(())
}
