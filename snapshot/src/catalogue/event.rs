use rusqlite::{Row, params};
use serde_json::Value;

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::words::words;
use crate::clock;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::{EventId, MachineId};

/// About this many events of one machine are kept: the oldest are removed first.
const KEPT: u32 = 10_000;
/// Number of new events after which old ones are removed.
const TRIM_STEP: i64 = 256;

words!(
    /// How serious an event is.
    EventSeverity {
        /// Something happened as expected.
        Info = "info",
        /// Something needs attention; nothing failed.
        Warning = "warning",
        /// Something failed.
        Error = "error",
    }
);

/// An event of a machine, reported by its driver or its manager.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// Its number: events of one store are numbered in the order in which they were added.
    pub id: EventId,
    /// The machine.
    pub machine: MachineId,
    /// When it was added: milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// The kind of event, as named by its reporter: `guest-panicked`, `io-error`.
    pub kind: String,
    /// How serious it is.
    pub severity: EventSeverity,
    /// Details: a JSON object.
    pub detail: Value,
}

const COLUMNS: &str = "id, machine, at_ms, kind, severity, detail";

impl Catalogue {
    /// Adds an event. `detail` is a JSON object, or null. About 10,000 events are kept of each machine. A power cut
    /// can lose the last ones.
    pub fn add_event(
        &self,
        machine: MachineId,
        kind: &str,
        severity: EventSeverity,
        detail: &Value,
    ) -> Result<EventId> {
        let detail = if detail.is_null() { "{}".to_owned() } else { detail.to_string() };
        self.write("adding an event", Durability::Process, |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO event (machine, at_ms, kind, severity, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![machine.0, clock::now_ms(), kind, severity.to_string(), detail])?;
            let id = transaction.last_insert_rowid();
            if id % TRIM_STEP == 0 {
                transaction
                    .prepare_cached(
                        "DELETE FROM event WHERE machine = ?1 AND id <= (
                             SELECT id FROM event WHERE machine = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                    )?
                    .execute(params![machine.0, KEPT])?;
            }
            Ok(EventId(id))
        })
    }

    /// The machine's events after `after` (exclusive; `EventId(0)`: from the oldest on), oldest first, at most
    /// `limit`.
    pub fn events_since(&self, machine: MachineId, after: EventId, limit: usize) -> Result<Vec<EventRecord>> {
        self.read("reading events", |reader| {
            let mut statement = reader.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM event WHERE machine = ?1 AND id > ?2 ORDER BY id LIMIT ?3"
            ))?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut rows = statement.query(params![machine.0, after.0, limit])?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                events.push(record(row)?);
            }
            Ok(events)
        })
    }
}

fn record(row: &Row<'_>) -> Result<EventRecord, Abort> {
    let id = EventId(row.get(0)?);
    let unreadable =
        |what: &str| Error::Damaged(Box::new(Damage::catalogue(format!("{what} of event number {id}"))));
    Ok(EventRecord {
        id,
        machine: MachineId(row.get(1)?),
        at_ms: row.get(2)?,
        kind: row.get(3)?,
        severity: row.get::<_, String>(4)?.parse().map_err(|()| unreadable("severity"))?,
        detail: serde_json::from_str(&row.get::<_, String>(5)?).map_err(|_| unreadable("detail"))?,
    })
}
