use retrovisor_guest::MachineIdentity;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::position::Position;
use super::words::words;
use crate::clock;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId, TimelineId};

/// A machine of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineRecord {
    /// Its id in this store.
    pub id: MachineId,
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// When it was added: milliseconds since 1970 UTC.
    pub created_at_ms: i64,
    /// The identity with which its states are compared.
    pub identity: MachineIdentity,
    /// Data that the manager needs to find the process again; the store does not interpret it.
    pub runtime: String,
    /// The checkpoint and timeline that its current state is based on, once it has a checkpoint.
    pub position: Option<Position>,
    /// The state that the user wants, whatever the current one is.
    pub desired_state: DesiredState,
}

words!(
    /// The state that the user wants. It survives restarts of the daemon and of the host.
    DesiredState {
        /// Running; the state of a new machine.
        Running = "running",
        /// Paused.
        Paused = "paused",
        /// Without a process.
        Stopped = "stopped",
    }
);

const COLUMNS: &str =
    "id, name, driver, created_at_ms, identity, runtime, timeline, checkpoint, desired_state";

impl Catalogue {
    /// All machines, in the order in which they were added.
    pub fn machines(&self) -> Result<Vec<MachineRecord>> {
        self.read("reading machines", |reader| {
            let mut statement =
                reader.prepare_cached(&format!("SELECT {COLUMNS} FROM machine ORDER BY id"))?;
            let mut rows = statement.query([])?;
            let mut machines = Vec::new();
            while let Some(row) = rows.next()? {
                machines.push(record(row)?);
            }
            Ok(machines)
        })
    }

    /// The machine of this name.
    pub fn machine(&self, name: &str) -> Result<MachineRecord> {
        self.read("reading a machine", |reader| one(reader, "name = ?1", name, name))
    }

    /// The machine of this id.
    pub fn machine_by_id(&self, id: MachineId) -> Result<MachineRecord> {
        self.read("reading a machine", |reader| one(reader, "id = ?1", id.0, &id.to_string()))
    }

    /// Adds a machine. Its name must be new: letters, digits, `-`, `_` and `.`, at most 64, not starting with `-` or
    /// `.`.
    pub fn add_machine(&self, identity: &MachineIdentity) -> Result<MachineRecord> {
        let id = self.write("adding a machine", Durability::Full, |transaction| {
            insert(transaction, identity, clock::now_ms())
        })?;
        self.machine_by_id(id)
    }

    /// Removes a machine that has no checkpoint: one that did not start, or whose import failed.
    pub fn remove_empty_machine(&self, machine: MachineId) -> Result<()> {
        self.write("removing a machine", Durability::Full, |transaction| {
            transaction.execute("DELETE FROM event WHERE machine = ?1", [machine.0])?;
            transaction.execute(
                "DELETE FROM machine WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM checkpoint WHERE machine = ?1)",
                [machine.0],
            )?;
            Ok(())
        })
    }

    /// Records the data that the manager needs to find the machine's process again.
    pub fn set_runtime(&self, machine: MachineId, runtime: &str) -> Result<()> {
        self.update_machine(machine, "UPDATE machine SET runtime = ?2 WHERE id = ?1", runtime)
    }

    /// Records the state that the user wants.
    pub fn set_desired_state(&self, machine: MachineId, state: DesiredState) -> Result<()> {
        self.update_machine(
            machine,
            "UPDATE machine SET desired_state = ?2 WHERE id = ?1",
            &state.to_string(),
        )
    }

    /// Replaces the identity: after the machine was started by another version of its driver.
    pub fn set_identity(&self, machine: MachineId, identity: &MachineIdentity) -> Result<()> {
        let known = self.machine_by_id(machine)?;
        if known.name != identity.name || known.identity.layout != identity.layout {
            let why = "the name and the memory layout of a machine cannot change".to_owned();
            return Err(Error::Invalid { what: "machine identity", why });
        }
        let json = serde_json::to_string(identity)
            .map_err(|e| Error::Invalid { what: "machine identity", why: e.to_string() })?;
        self.update_machine(machine, "UPDATE machine SET identity = ?2 WHERE id = ?1", &json)
    }

    /// The checkpoint and timeline that the machine's current state is based on; `None` before its first checkpoint.
    pub fn position(&self, machine: MachineId) -> Result<Option<Position>> {
        Ok(self.machine_by_id(machine)?.position)
    }

    fn update_machine(&self, machine: MachineId, sql: &str, value: &str) -> Result<()> {
        self.write("changing a machine", Durability::Full, |transaction| {
            if transaction.execute(sql, params![machine.0, value])? == 0 {
                return Err(not_found(&machine.to_string()).into());
            }
            Ok(())
        })
    }
}

/// Adds a machine, if its name is new and usable.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    identity: &MachineIdentity,
    created_at_ms: i64,
) -> Result<MachineId, Abort> {
    retrovisor_guest::check_name("machine", &identity.name)
        .map_err(|error| Error::Invalid { what: "machine name", why: error.to_string() })?;
    let json = serde_json::to_string(identity)
        .map_err(|e| Error::Invalid { what: "machine identity", why: e.to_string() })?;
    let added = transaction.execute(
        "INSERT INTO machine (name, driver, created_at_ms, identity) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name) DO NOTHING",
        params![identity.name, identity.driver, created_at_ms, json],
    )?;
    if added == 0 {
        return Err(Error::Exists { what: "machine", name: identity.name.clone() }.into());
    }
    Ok(MachineId(transaction.last_insert_rowid()))
}

pub(super) fn one(
    reader: &Connection,
    condition: &str,
    key: impl rusqlite::ToSql,
    name: &str,
) -> Result<MachineRecord, Abort> {
    let mut statement = reader.prepare_cached(&format!("SELECT {COLUMNS} FROM machine WHERE {condition}"))?;
    let record = statement.query_row([key], |row| Ok(record(row))).optional()?;
    record.ok_or_else(|| not_found(name))?
}

fn record(row: &Row<'_>) -> Result<MachineRecord, Abort> {
    let name: String = row.get(1)?;
    let identity = serde_json::from_str(&row.get::<_, String>(4)?).map_err(|e| {
        Error::Damaged(Box::new(Damage::catalogue(format!("identity of machine {name}: {e}"))))
    })?;
    let position = match (row.get(6)?, row.get(7)?) {
        (Some(timeline), Some(checkpoint)) => {
            Some(Position { timeline: TimelineId(timeline), checkpoint: CheckpointId(checkpoint) })
        }
        _ => None,
    };
    Ok(MachineRecord {
        id: MachineId(row.get(0)?),
        driver: row.get(2)?,
        created_at_ms: row.get(3)?,
        identity,
        runtime: row.get(5)?,
        position,
        desired_state: row.get::<_, String>(8)?.parse().map_err(|()| {
            Error::Damaged(Box::new(Damage::catalogue(format!("desired state of machine {name}"))))
        })?,
        name,
    })
}

fn not_found(name: &str) -> Error {
    Error::NotFound { what: "machine", name: name.to_owned(), help: "`retrovisor list` lists them all" }
}
