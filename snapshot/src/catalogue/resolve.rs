use rusqlite::{Connection, OptionalExtension, params};

use super::abort::Abort;
use super::checkpoint::{CheckpointRecord, matching, not_found, one};
use super::connection::Catalogue;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId, is_name_prefix};

/// Candidates named when a prefix is not unique.
const CANDIDATES_MAX: usize = 8;

impl Catalogue {
    /// Resolves a user's name of a checkpoint:
    ///
    /// - `current`: the one that the current state is based on; `latest`: the one taken last, on any timeline;
    /// - `last-good`: the newest with verdict good and not doubtful among the current one and its ancestors;
    /// - `-N`: the Nth ancestor of the current one; `@SEQ`: by its number;
    /// - a label: the newest that has it among the current one and its ancestors, or the only one elsewhere;
    /// - an id, or the first letters of an id.
    ///
    /// An ambiguous name is an error that lists the candidates.
    pub fn resolve(&self, machine: MachineId, spec: &str) -> Result<CheckpointRecord> {
        self.read("looking for a checkpoint", |reader| {
            match spec {
                "current" => return one(reader, current(reader, machine, spec)?),
                "latest" => {
                    let newest = "c.machine = ?1 ORDER BY c.sequence DESC LIMIT 1";
                    return first(matching(reader, newest, [machine.0])?, spec);
                }
                "last-good" => return one(reader, last_good(reader, machine)?),
                _ => (),
            }
            if let Some(sequence) = spec.strip_prefix('@').and_then(|rest| rest.parse::<u64>().ok()) {
                let by_sequence = "c.machine = ?1 AND c.sequence = ?2";
                return first(matching(reader, by_sequence, params![machine.0, sequence])?, spec);
            }
            if let Some(steps) = spec.strip_prefix('-').and_then(|rest| rest.parse::<u32>().ok()) {
                return back(reader, current(reader, machine, spec)?, steps, spec);
            }
            by_name(reader, machine, spec)
        })
    }
}

fn by_name(reader: &Connection, machine: MachineId, spec: &str) -> Result<CheckpointRecord, Abort> {
    let labelled = "c.machine = ?1 AND c.label = ?2 ORDER BY c.sequence DESC";
    let mut found = matching(reader, labelled, params![machine.0, spec])?;
    if found.len() > 1
        && let Some(newest) = labelled_ancestor(reader, machine, spec)?
    {
        return one(reader, newest);
    }
    if found.is_empty() && is_name_prefix(spec) {
        // Ids hold the letters k to z only: nothing in them means anything to GLOB.
        let prefixed = "c.name GLOB ?2 AND c.machine = ?1 ORDER BY c.sequence DESC";
        found = matching(reader, prefixed, params![machine.0, format!("{spec}*")])?;
    }
    if found.len() > 1 {
        let candidates = found
            .iter()
            .take(CANDIDATES_MAX)
            .map(|c| match &c.label {
                Some(label) => format!("{} (@{}, {label})", c.name, c.sequence),
                None => format!("{} (@{})", c.name, c.sequence),
            })
            .collect();
        return Err(Error::Ambiguous { spec: spec.to_owned(), candidates }.into());
    }
    first(found, spec)
}

/// The newest with a label among the current checkpoint and its ancestors.
fn labelled_ancestor(
    reader: &Connection,
    machine: MachineId,
    label: &str,
) -> Result<Option<CheckpointId>, Abort> {
    let mut statement = reader.prepare_cached(
        "WITH RECURSIVE line (id, parent) AS (
             SELECT c.id, c.parent FROM checkpoint c JOIN machine m ON m.checkpoint = c.id WHERE m.id = ?1
             UNION ALL
             SELECT c.id, c.parent FROM line JOIN checkpoint c ON c.id = line.parent AND c.id < line.id)
         SELECT line.id FROM line JOIN checkpoint c ON c.id = line.id WHERE c.label = ?2
         ORDER BY line.id DESC LIMIT 1",
    )?;
    Ok(statement.query_row(params![machine.0, label], |row| row.get(0)).optional()?.map(CheckpointId))
}

fn current(reader: &Connection, machine: MachineId, spec: &str) -> Result<CheckpointId, Abort> {
    let mut statement = reader.prepare_cached("SELECT checkpoint FROM machine WHERE id = ?1")?;
    let checkpoint: Option<Option<i64>> = statement.query_row([machine.0], |row| row.get(0)).optional()?;
    checkpoint.flatten().map(CheckpointId).ok_or_else(|| not_found(spec).into())
}

fn last_good(reader: &Connection, machine: MachineId) -> Result<CheckpointId, Abort> {
    let from = current(reader, machine, "last-good")?;
    let mut statement = reader.prepare_cached(
        "WITH RECURSIVE line (id, parent) AS (
             SELECT id, parent FROM checkpoint WHERE id = ?1
             UNION ALL
             SELECT c.id, c.parent FROM line JOIN checkpoint c ON c.id = line.parent AND c.id < line.id)
         SELECT line.id FROM line JOIN verdict v ON v.checkpoint = line.id JOIN checkpoint c ON c.id = line.id
         WHERE v.verdict = 'good' AND c.doubtful = 0
         ORDER BY line.id DESC LIMIT 1",
    )?;
    let good = statement.query_row([from.0], |row| row.get(0)).optional()?;
    good.map(CheckpointId).ok_or_else(|| {
        Error::NotFound {
            what: "checkpoint",
            name: "last-good".into(),
            help: "neither the current checkpoint nor an ancestor of it has the verdict good yet; name one yourself (-N, @SEQ, an id)",
        }
        .into()
    })
}

fn back(reader: &Connection, from: CheckpointId, steps: u32, spec: &str) -> Result<CheckpointRecord, Abort> {
    let mut statement = reader.prepare_cached(
        "WITH RECURSIVE line (id, parent, step) AS (
             SELECT id, parent, 0 FROM checkpoint WHERE id = ?1
             UNION ALL
             SELECT c.id, c.parent, step + 1 FROM line JOIN checkpoint c ON c.id = line.parent AND c.id < line.id
             WHERE step < ?2)
         SELECT id FROM line WHERE step = ?2",
    )?;
    let id = statement.query_row(params![from.0, steps], |row| row.get(0)).optional()?;
    one(reader, CheckpointId(id.ok_or_else(|| not_found(spec))?))
}

fn first(found: Vec<CheckpointRecord>, spec: &str) -> Result<CheckpointRecord, Abort> {
    found.into_iter().next().ok_or_else(|| not_found(spec).into())
}
