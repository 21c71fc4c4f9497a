use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use crate::id::{CheckpointId, MachineId, TimelineId};

/// A machine's position: the checkpoint that its current state is based on, and its timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The timeline that the next checkpoint will belong to.
    pub timeline: TimelineId,
    /// The checkpoint that was last taken or moved to.
    pub checkpoint: CheckpointId,
}

/// Sets a machine's position.
pub(super) fn set(
    transaction: &Transaction<'_>,
    machine: MachineId,
    position: Position,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE machine SET timeline = ?2, checkpoint = ?3 WHERE id = ?1")?
        .execute(params![machine.0, position.timeline.0, position.checkpoint.0])?;
    Ok(())
}
