use rusqlite::{Row, params};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use crate::clock;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, IncidentId, MachineId, fresh_name, is_name_prefix};

/// Anomalies grouped, from the first bad checkpoint on.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentRecord {
    /// The number that joins the tables.
    pub id: IncidentId,
    /// The short id, for users.
    pub name: String,
    /// The machine.
    pub machine: MachineId,
    /// When it was opened: milliseconds since 1970 UTC.
    pub opened_at_ms: i64,
    /// The first bad checkpoint.
    pub first_bad: CheckpointId,
    /// The last good one before it, if there is one.
    pub last_good: Option<CheckpointId>,
    /// The kind of anomaly.
    pub kind: String,
    /// One line for users.
    pub summary: String,
    /// Evidence and candidates for the cause: JSON.
    pub detail: serde_json::Value,
    /// The action taken, if any.
    pub action: Option<String>,
}

/// The content of an incident.
#[derive(Clone, Debug, PartialEq)]
pub struct NewIncident {
    /// The first bad checkpoint.
    pub first_bad: CheckpointId,
    /// The last good one before it, if there is one.
    pub last_good: Option<CheckpointId>,
    /// The kind of anomaly.
    pub kind: String,
    /// One line for users.
    pub summary: String,
    /// Evidence and candidates for the cause: JSON.
    pub detail: serde_json::Value,
    /// The action taken, if any.
    pub action: Option<String>,
}

const SELECT: &str =
    "SELECT id, name, machine, first_bad, last_good, opened_at_ms, kind, summary, detail, action
    FROM incident";

impl Catalogue {
    /// Opens an incident.
    pub fn add_incident(&self, machine: MachineId, new: &NewIncident) -> Result<IncidentRecord> {
        let id = self.write("opening an incident", Durability::Process, |transaction| {
            transaction.execute(
                "INSERT INTO incident (name, machine, first_bad, last_good, opened_at_ms, kind, summary, detail, action)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    fresh_name(),
                    machine.0,
                    new.first_bad.0,
                    new.last_good.map(|id| id.0),
                    clock::now_ms(),
                    new.kind,
                    new.summary,
                    new.detail.to_string(),
                    new.action
                ],
            )?;
            Ok(transaction.last_insert_rowid())
        })?;
        self.first_incident("id = ?1", id, &id.to_string())
    }

    /// The machine's incidents, oldest first.
    pub fn incidents(&self, machine: MachineId) -> Result<Vec<IncidentRecord>> {
        self.incidents_where("machine = ?1", machine.0)
    }

    /// The incident of this short id, or of its first letters.
    pub fn incident(&self, name: &str) -> Result<IncidentRecord> {
        if !is_name_prefix(name) {
            return Err(not_found(name));
        }
        let mut found = self.incidents_where("name GLOB ?1", format!("{name}*"))?;
        match found.len() {
            0 => Err(not_found(name)),
            1 => Ok(found.remove(0)),
            _ => Err(Error::Ambiguous {
                spec: name.to_owned(),
                candidates: found.into_iter().map(|incident| incident.name).collect(),
            }),
        }
    }

    /// Replaces the content of an incident.
    pub fn update_incident(&self, id: IncidentId, content: &NewIncident) -> Result<()> {
        self.write("changing an incident", Durability::Process, |transaction| {
            let changed = transaction.execute(
                "UPDATE incident SET first_bad = ?2, last_good = ?3, kind = ?4, summary = ?5, detail = ?6, action = ?7
                 WHERE id = ?1",
                params![
                    id.0,
                    content.first_bad.0,
                    content.last_good.map(|id| id.0),
                    content.kind,
                    content.summary,
                    content.detail.to_string(),
                    content.action
                ],
            )?;
            if changed == 0 { Err(not_found(&id.to_string()).into()) } else { Ok(()) }
        })
    }

    fn first_incident(
        &self,
        condition: &str,
        key: impl rusqlite::ToSql,
        name: &str,
    ) -> Result<IncidentRecord> {
        self.incidents_where(condition, key)?.into_iter().next().ok_or_else(|| not_found(name))
    }

    fn incidents_where(&self, condition: &str, key: impl rusqlite::ToSql) -> Result<Vec<IncidentRecord>> {
        self.read("reading incidents", |reader| {
            let mut statement = reader.prepare_cached(&format!("{SELECT} WHERE {condition} ORDER BY id"))?;
            let mut rows = statement.query([key])?;
            let mut incidents = Vec::new();
            while let Some(row) = rows.next()? {
                incidents.push(record(row)?);
            }
            Ok(incidents)
        })
    }
}

fn record(row: &Row<'_>) -> Result<IncidentRecord, Abort> {
    let name: String = row.get(1)?;
    let detail = serde_json::from_str(&row.get::<_, String>(8)?).map_err(|e| {
        Error::Damaged(Box::new(Damage::catalogue(format!("detail of incident {name}: {e}"))))
    })?;
    Ok(IncidentRecord {
        id: IncidentId(row.get(0)?),
        name,
        machine: MachineId(row.get(2)?),
        opened_at_ms: row.get(5)?,
        first_bad: CheckpointId(row.get(3)?),
        last_good: row.get::<_, Option<_>>(4)?.map(CheckpointId),
        kind: row.get(6)?,
        summary: row.get(7)?,
        detail,
        action: row.get(9)?,
    })
}

fn not_found(name: &str) -> Error {
    Error::NotFound {
        what: "incident",
        name: name.to_owned(),
        help: "`retrovisor anomalies NAME` names a machine's incidents",
    }
}
