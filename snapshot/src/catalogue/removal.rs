//! The removal of a machine with its whole history.

use rusqlite::{OptionalExtension, params};

use super::connection::{Catalogue, Durability};
use crate::error::{Error, Result};
use crate::id::MachineId;

/// Another machine that was moved to a checkpoint of this one, so that its history contains it.
const DEPENDENT: &str = "SELECT m.name FROM checkpoint own
    JOIN checkpoint c ON c.parent = own.id JOIN machine m ON m.id = c.machine
    WHERE own.machine = ?1 AND c.machine <> ?1
    UNION
    SELECT m.name FROM checkpoint own
    JOIN operation o ON o.before = own.id OR o.after = own.id JOIN machine m ON m.id = o.machine
    WHERE own.machine = ?1 AND o.machine <> ?1 AND o.kind <> 'branch'
    LIMIT 1";

impl Catalogue {
    /// Machines that were branched from this one, by name.
    pub(crate) fn branches_of(&self, machine: MachineId) -> Result<Vec<String>> {
        self.read("looking for branches", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT DISTINCT b.name FROM operation o JOIN machine b ON b.id = o.machine
                 JOIN machine m ON m.name = o.detail ->> '$.from.machine'
                 WHERE o.kind = 'branch' AND m.id = ?1 ORDER BY b.name",
            )?;
            let names = statement.query_map([machine.0], |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }

    /// Removes the rows that keep a machine's checkpoints: its position, pins, operations and incidents.
    pub(crate) fn begin_removal(&self, machine: MachineId) -> Result<()> {
        self.write_long("removing a machine", Durability::Full, |transaction| {
            let is_origin: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM operation o JOIN checkpoint c ON c.id = o.before
                     WHERE o.machine <> ?1 AND o.status = 'started' AND c.machine = ?1)",
                [machine.0],
                |row| row.get(0),
            )?;
            if is_origin {
                return Err(Error::Invalid {
                    what: "machine",
                    why: "a branch is being made from it: remove it when the branch runs".to_owned(),
                }
                .into());
            }
            let dependent: Option<String> =
                transaction.query_row(DEPENDENT, [machine.0], |row| row.get(0)).optional()?;
            if let Some(other) = dependent {
                let why = format!("{other} was taken to one of its checkpoints: remove {other} first");
                return Err(Error::Invalid { what: "machine", why }.into());
            }
            // Branches keep the names of their origin, which are in the operation's detail.
            transaction.execute(
                "UPDATE operation SET before = NULL, before_timeline = NULL
                 WHERE kind = 'branch' AND machine <> ?1 AND before IN (
                     SELECT id FROM checkpoint WHERE machine = ?1
                     UNION SELECT checkpoint FROM pruned WHERE machine = ?1)",
                [machine.0],
            )?;
            transaction.execute(
                "UPDATE machine SET timeline = NULL, checkpoint = NULL, desired_state = 'stopped' WHERE id = ?1",
                params![machine.0],
            )?;
            transaction.execute("UPDATE checkpoint SET pinned = 0 WHERE machine = ?1", [machine.0])?;
            for table in ["operation", "incident", "event"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE machine = ?1"), [machine.0])?;
            }
            Ok(())
        })
    }

    /// Removes a machine that has no checkpoints any more.
    pub(crate) fn end_removal(&self, machine: MachineId) -> Result<()> {
        self.write_long("removing a machine", Durability::Full, |transaction| {
            for table in ["pruned", "disk", "timeline", "operation", "event", "series"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE machine = ?1"), [machine.0])?;
            }
            transaction.execute("DELETE FROM machine WHERE id = ?1", [machine.0])?;
            Ok(())
        })
    }
}
