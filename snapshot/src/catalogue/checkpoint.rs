use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::position::{self, Position};
use super::timeline;
use super::verdict::Verdict;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId, TimelineId, fresh_name};

/// Why a checkpoint was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// It was due.
    #[default]
    Automatic,
    /// It was requested.
    Manual,
    /// It is the state before a rollback, undo or redo.
    BeforeRollback,
}

/// A checkpoint of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointRecord {
    /// The number that joins the tables.
    pub id: CheckpointId,
    /// The short id, for users.
    pub name: String,
    /// The machine.
    pub machine: MachineId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The checkpoint that it is based on; none for a machine's first.
    pub parent: Option<CheckpointId>,
    /// Counts the machine's checkpoints from 1, in the order in which they were taken, over all timelines.
    pub sequence: u64,
    /// A name given by the user.
    pub label: Option<String>,
    /// Why it was taken.
    pub kind: CheckpointKind,
    /// The host's wall clock at the pause: milliseconds since 1970 UTC.
    pub taken_at_ms: i64,
    /// How long the guest was paused.
    pub pause_us: u64,
    /// From the resume until the checkpoint was durable.
    pub durable_us: u64,
    /// Frames reported dirty; where all were, because it is not known which were written, those that changed.
    pub dirty_pages: u64,
    /// Frames whose contents differ from the parent's.
    pub changed_pages: u64,
    /// Contents not seen before in this store.
    pub new_pages: u64,
    /// Dirty frames that are zero or removed.
    pub zero_pages: u64,
    /// Bytes added to the packs.
    pub stored_bytes: u64,
    /// The detectors' verdict.
    pub verdict: Verdict,
    /// The detectors' score, once there is one.
    pub score: Option<f64>,
    /// Whether the checkpoint may differ from the guest's memory. It is readable and can be a target, but never that of
    /// an automatic rollback.
    pub doubtful: bool,
}

impl fmt::Display for CheckpointRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The row of a new checkpoint.
pub(crate) struct NewCheckpoint {
    pub(crate) machine: MachineId,
    pub(crate) label: Option<String>,
    pub(crate) kind: CheckpointKind,
    pub(crate) taken_at_ms: i64,
    pub(crate) pause_us: u64,
    pub(crate) dirty_pages: u64,
    pub(crate) changed_pages: u64,
    pub(crate) new_pages: u64,
    pub(crate) zero_pages: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) keyframe_distance: u64,
    pub(crate) keyframe_rows: u64,
}

const SELECT: &str = "SELECT c.id, c.name, c.machine, c.timeline, c.parent, c.sequence, c.label, c.kind,
    c.taken_at_ms, c.pause_us, c.durable_us, c.dirty_pages, c.changed_pages, c.new_pages, c.zero_pages,
    c.stored_bytes, v.verdict, v.score, c.doubtful
    FROM checkpoint c LEFT JOIN verdict v ON v.checkpoint = c.id";

impl Catalogue {
    /// The machine's checkpoints on all timelines, in the order of taking.
    pub fn checkpoints(&self, machine: MachineId) -> Result<Vec<CheckpointRecord>> {
        self.read("reading checkpoints", |reader| {
            many(reader, &format!("{SELECT} WHERE c.machine = ?1 ORDER BY c.sequence"), [machine.0])
        })
    }

    /// The newest `count` checkpoints of the machine on all timelines, in the order of taking.
    pub fn recent_checkpoints(&self, machine: MachineId, count: usize) -> Result<Vec<CheckpointRecord>> {
        let mut newest = self.read("reading checkpoints", |reader| {
            let sql = format!("{SELECT} WHERE c.machine = ?1 ORDER BY c.sequence DESC LIMIT ?2");
            many(reader, &sql, params![machine.0, i64::try_from(count).unwrap_or(i64::MAX)])
        })?;
        newest.reverse();
        Ok(newest)
    }

    /// One checkpoint.
    pub fn checkpoint(&self, id: CheckpointId) -> Result<CheckpointRecord> {
        self.read("reading a checkpoint", |reader| one(reader, id))
    }

    /// The checkpoint and its ancestors, newest first.
    pub fn ancestry(&self, checkpoint: CheckpointId) -> Result<Vec<CheckpointRecord>> {
        self.ancestry_within(checkpoint, usize::MAX)
    }

    /// The first `count` of [`Catalogue::ancestry`].
    pub fn ancestry_within(&self, checkpoint: CheckpointId, count: usize) -> Result<Vec<CheckpointRecord>> {
        self.read("reading the ancestry", |reader| {
            one(reader, checkpoint)?;
            // A parent is always older than its child, so that damaged links cannot form a cycle.
            let sql = format!(
                "WITH RECURSIVE line (id, parent) AS (
                     SELECT id, parent FROM checkpoint WHERE id = ?1
                     UNION ALL
                     SELECT c.id, c.parent FROM line JOIN checkpoint c ON c.id = line.parent AND c.id < line.id
                     LIMIT ?2)
                 {SELECT} WHERE c.id IN (SELECT id FROM line) ORDER BY c.id DESC"
            );
            many(reader, &sql, params![checkpoint.0, i64::try_from(count).unwrap_or(i64::MAX)])
        })
    }

    /// Marks the machine's checkpoints with these sequence numbers as doubtful. Returns how many were not marked
    /// before.
    pub fn mark_doubtful(&self, machine: MachineId, sequences: RangeInclusive<u64>) -> Result<u64> {
        self.write("marking doubtful checkpoints", Durability::Full, |transaction| {
            let marked = transaction
                .prepare_cached(
                    "UPDATE checkpoint SET doubtful = 1
                     WHERE machine = ?1 AND sequence BETWEEN ?2 AND ?3 AND doubtful = 0",
                )?
                .execute(params![
                    machine.0,
                    i64::try_from(*sequences.start()).unwrap_or(i64::MAX),
                    i64::try_from(*sequences.end()).unwrap_or(i64::MAX)
                ])?;
            Ok(marked as u64)
        })
    }

    /// Records how long it took until checkpoints were durable, in microseconds.
    pub(crate) fn set_durable(&self, checkpoints: &[(CheckpointId, u64)]) -> Result<()> {
        self.write("noting the time it took", Durability::Process, |transaction| {
            let mut update =
                transaction.prepare_cached("UPDATE checkpoint SET durable_us = ?2 WHERE id = ?1")?;
            for (checkpoint, durable_us) in checkpoints {
                update.execute(params![checkpoint.0, durable_us])?;
            }
            Ok(())
        })
    }
}

/// Adds a checkpoint, on the parent's timeline or a first one, which starts from `origin`, and moves the machine onto
/// it. Returns its sequence number as well.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    new: &NewCheckpoint,
    parent: Option<Position>,
    origin: Option<CheckpointId>,
    changes_hash: &[u8; 32],
) -> Result<(Position, u64), Abort> {
    let timeline = match parent {
        Some(position) => position.timeline,
        None => timeline::insert(transaction, new.machine, origin)?,
    };
    let (checkpoint, sequence) = transaction
        .prepare_cached(
            "INSERT INTO checkpoint (name, machine, timeline, parent, sequence, label, kind, taken_at_ms, pause_us,
                 dirty_pages, changed_pages, new_pages, zero_pages, stored_bytes, keyframe_distance, keyframe_rows,
                 changes_hash)
             SELECT ?1, ?2, ?3, ?4, coalesce(max(sequence), 0) + 1, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16
             FROM checkpoint WHERE machine = ?2
             RETURNING id, sequence",
        )?
        .query_row(params![
            fresh_name(),
            new.machine.0,
            timeline.0,
            parent.map(|position| position.checkpoint.0),
            new.label,
            new.kind.to_string(),
            new.taken_at_ms,
            new.pause_us,
            new.dirty_pages,
            new.changed_pages,
            new.new_pages,
            new.zero_pages,
            new.stored_bytes,
            new.keyframe_distance,
            new.keyframe_rows,
            changes_hash,
        ], |row| Ok((CheckpointId(row.get(0)?), row.get(1)?)))?;
    let position = Position { timeline, checkpoint };
    position::set(transaction, new.machine, position)?;
    Ok((position, sequence))
}

/// Reads one checkpoint.
pub(super) fn one(reader: &Connection, id: CheckpointId) -> Result<CheckpointRecord, Abort> {
    let mut statement = reader.prepare_cached(&format!("{SELECT} WHERE c.id = ?1"))?;
    let found = statement.query_row([id.0], |row| Ok(record(row))).optional()?;
    found.ok_or_else(|| not_found(&id.to_string()))?
}

/// Reads the checkpoints that fit `condition`, in which they are `c`.
pub(super) fn matching(
    reader: &Connection,
    condition: &str,
    values: impl rusqlite::Params,
) -> Result<Vec<CheckpointRecord>, Abort> {
    many(reader, &format!("{SELECT} WHERE {condition}"), values)
}

/// There is no such checkpoint.
pub(super) fn not_found(name: &str) -> Error {
    Error::NotFound {
        what: "checkpoint",
        name: name.to_owned(),
        help: "`retrovisor log` lists them all; last-good, latest, -N, @SEQ, a label or the first letters of an id will do",
    }
}

fn many(
    reader: &Connection,
    sql: &str,
    values: impl rusqlite::Params,
) -> Result<Vec<CheckpointRecord>, Abort> {
    let mut statement = reader.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(record(row)?);
    }
    Ok(records)
}

fn record(row: &Row<'_>) -> Result<CheckpointRecord, Abort> {
    let name: String = row.get(1)?;
    let unreadable =
        |what: &str| Error::Damaged(Box::new(Damage::catalogue(format!("{what} of checkpoint {name}"))));
    let kind = row.get::<_, String>(7)?.parse().map_err(|()| unreadable("kind"))?;
    let verdict = match row.get::<_, Option<String>>(16)? {
        Some(text) => text.parse().map_err(|_| unreadable("verdict"))?,
        None => Verdict::Unknown,
    };
    Ok(CheckpointRecord {
        id: CheckpointId(row.get(0)?),
        machine: MachineId(row.get(2)?),
        timeline: TimelineId(row.get(3)?),
        parent: row.get::<_, Option<_>>(4)?.map(CheckpointId),
        sequence: row.get(5)?,
        label: row.get(6)?,
        kind,
        taken_at_ms: row.get(8)?,
        pause_us: row.get(9)?,
        durable_us: row.get::<_, Option<u64>>(10)?.unwrap_or(0),
        dirty_pages: row.get(11)?,
        changed_pages: row.get(12)?,
        new_pages: row.get(13)?,
        zero_pages: row.get(14)?,
        stored_bytes: row.get(15)?,
        verdict,
        score: row.get(17)?,
        doubtful: row.get(18)?,
        name,
    })
}

impl fmt::Display for CheckpointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Automatic => "automatic",
            Self::Manual => "manual",
            Self::BeforeRollback => "before-rollback",
        })
    }
}

impl FromStr for CheckpointKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Automatic, Self::Manual, Self::BeforeRollback]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or(())
    }
}
