use rusqlite::{Row, Transaction, params};

use super::connection::Catalogue;
use super::position::Position;
use crate::clock;
use crate::error::Result;
use crate::id::{CheckpointId, MachineId, TimelineId};

/// A line of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineRecord {
    /// Its id.
    pub id: TimelineId,
    /// The machine.
    pub machine: MachineId,
    /// The checkpoint it starts from (it belongs to another timeline). The first timeline of a branch starts from a
    /// checkpoint of another machine, that of any other machine from none.
    pub origin: Option<CheckpointId>,
    /// When it began: milliseconds since 1970 UTC.
    pub created_at_ms: i64,
}

impl Catalogue {
    /// The machine's timelines, oldest first.
    pub fn timelines(&self, machine: MachineId) -> Result<Vec<TimelineRecord>> {
        self.read("reading timelines", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT id, machine, origin, created_at_ms FROM timeline WHERE machine = ?1 ORDER BY id",
            )?;
            let rows = statement.query_map([machine.0], record)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

impl Catalogue {
    /// Whether nothing follows a checkpoint in this timeline.
    pub(crate) fn is_tip(&self, position: Position) -> Result<bool> {
        self.read("looking for the end of a timeline", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT NOT EXISTS (SELECT 1 FROM checkpoint WHERE parent = ?1 AND timeline = ?2)",
            )?;
            Ok(statement.query_row([position.checkpoint.0, position.timeline.0], |row| row.get(0))?)
        })
    }
}

/// Begins a timeline.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    machine: MachineId,
    origin: Option<CheckpointId>,
) -> rusqlite::Result<TimelineId> {
    transaction
        .prepare_cached("INSERT INTO timeline (machine, origin, created_at_ms) VALUES (?1, ?2, ?3)")?
        .execute(params![machine.0, origin.map(|id| id.0), clock::now_ms()])?;
    Ok(TimelineId(transaction.last_insert_rowid()))
}

fn record(row: &Row<'_>) -> rusqlite::Result<TimelineRecord> {
    Ok(TimelineRecord {
        id: TimelineId(row.get(0)?),
        machine: MachineId(row.get(1)?),
        origin: row.get::<_, Option<_>>(2)?.map(CheckpointId),
        created_at_ms: row.get(3)?,
    })
}
