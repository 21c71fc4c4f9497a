use std::fmt;
use std::str::FromStr;

use rusqlite::{Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::position::{Position, set_position};
use super::timeline;
use crate::clock;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId, OperationId, TimelineId, fresh_name};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$word_doc])* $word,)* }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$word => $text,)* })
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($text => Ok(Self::$word),)* _ => Err(()) }
            }
        }
    };
}

words!(
    /// What was done to a machine.
    OperationKind {
        /// Somebody asked for a checkpoint. (Automatic ones are not operations: the list of checkpoints is their log.)
        Checkpoint = "checkpoint",
        /// The machine went back.
        Rollback = "rollback",
        /// An operation was undone.
        Undo = "undo",
        /// An undo was undone.
        Redo = "redo",
        /// A checkpoint was put into a new process.
        Restore = "restore",
        /// The machine was hurt on purpose.
        Inject = "inject",
        /// Checkpoints were removed.
        Prune = "prune",
        /// The machine came from an archive or a dump.
        Import = "import",
        /// A checkpoint was pinned or let go.
        Pin = "pin",
        /// The machine began as a branch of another one: `before` is that one's checkpoint, `after` its own first.
        Branch = "branch",
    }
);

words!(
    /// How far an operation came.
    OperationStatus {
        /// Begun and not ended: being done, or cut off by a crash. Memory may be half written then.
        Started = "started",
        /// Done.
        Done = "done",
        /// Failed, and the machine put back to where it stood.
        Failed = "failed",
    }
);

impl OperationKind {
    /// Whether it moves the machine to another checkpoint.
    #[must_use]
    pub fn moves(self) -> bool {
        matches!(self, Self::Rollback | Self::Undo | Self::Redo | Self::Restore)
    }
}

/// Something that was done to a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationRecord {
    /// The number that joins the tables.
    pub id: OperationId,
    /// The short id that people see.
    pub name: String,
    /// The machine.
    pub machine: MachineId,
    /// What was done.
    pub kind: OperationKind,
    /// How far it came.
    pub status: OperationStatus,
    /// When it began: milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// Where the machine stood before; none when it stood nowhere.
    pub before: Option<Position>,
    /// Where it stands after. While started: the target, on the timeline of the target.
    pub after: Option<Position>,
    /// The operation that this one undoes or redoes.
    pub undoes: Option<OperationId>,
    /// What the caller wants to keep with it (reason, who): a JSON object.
    pub detail: serde_json::Value,
}

/// What the engine writes of an operation.
pub(crate) struct NewOperation<'a> {
    pub(crate) machine: MachineId,
    pub(crate) kind: OperationKind,
    pub(crate) status: OperationStatus,
    pub(crate) before: Option<Position>,
    pub(crate) after: Option<Position>,
    pub(crate) undoes: Option<OperationId>,
    pub(crate) detail: &'a serde_json::Value,
}

const COLUMNS: &str =
    "id, name, machine, kind, status, at_ms, before, before_timeline, after, after_timeline, undoes, detail";

impl Catalogue {
    /// What was done to the machine, oldest first.
    pub fn operations(&self, machine: MachineId) -> Result<Vec<OperationRecord>> {
        self.read("reading operations", |reader| {
            let mut statement = reader
                .prepare_cached(&format!("SELECT {COLUMNS} FROM operation WHERE machine = ?1 ORDER BY id"))?;
            let mut rows = statement.query([machine.0])?;
            let mut operations = Vec::new();
            while let Some(row) = rows.next()? {
                operations.push(record(row)?);
            }
            Ok(operations)
        })
    }

    /// Notes something that was done to the machine where it stands, without moving it.
    pub fn note_operation(
        &self,
        machine: MachineId,
        kind: OperationKind,
        detail: &serde_json::Value,
    ) -> Result<OperationRecord> {
        if kind.moves() {
            let why = format!("{kind} moves the machine: the recorder notes it");
            return Err(Error::Invalid { what: "kind of operation", why });
        }
        let position = self.position(machine)?;
        let id = self.begin(&NewOperation {
            machine,
            kind,
            status: OperationStatus::Done,
            before: position,
            after: position,
            undoes: None,
            detail,
        })?;
        self.operation(id)
    }

    /// One operation.
    pub fn operation(&self, id: OperationId) -> Result<OperationRecord> {
        self.read("reading an operation", |reader| {
            let mut statement =
                reader.prepare_cached(&format!("SELECT {COLUMNS} FROM operation WHERE id = ?1"))?;
            let mut rows = statement.query([id.0])?;
            match rows.next()? {
                Some(row) => record(row),
                None => Err(Error::NotFound {
                    what: "operation",
                    name: id.to_string(),
                    help: "`retrovisor log` names them all",
                }
                .into()),
            }
        })
    }

    /// The rollback, undo, redo or restore that a crash cut off, if the last one was: the machine's memory may be
    /// half written, and it must be restored before it may run.
    pub fn interrupted(&self, machine: MachineId) -> Result<Option<OperationRecord>> {
        let last = self.operations(machine)?.into_iter().rfind(|operation| operation.kind.moves());
        Ok(last.filter(|operation| operation.status == OperationStatus::Started))
    }

    /// Ends an operation that moved the machine: it stands at the operation's target now, on a timeline of its own
    /// unless `timeline` is given.
    pub(crate) fn finish(
        &self,
        operation: OperationId,
        machine: MachineId,
        target: CheckpointId,
        timeline: Option<TimelineId>,
        durability: Durability,
    ) -> Result<Position> {
        self.write("noting that the machine went back", durability, |transaction| {
            Ok(arrive(transaction, operation, machine, target, timeline)?)
        })
    }

    /// Ends an operation that left the machine where it stood; `note` (a JSON object) is added to its detail.
    pub(crate) fn end_in_place(
        &self,
        operation: OperationId,
        is_done: bool,
        note: &serde_json::Value,
    ) -> Result<()> {
        let status = if is_done { OperationStatus::Done } else { OperationStatus::Failed };
        self.write("ending an operation", Durability::Full, |transaction| {
            transaction.execute(
                "UPDATE operation SET status = ?2, detail = json_patch(detail, ?3) WHERE id = ?1",
                params![operation.0, status.to_string(), note.to_string()],
            )?;
            Ok(())
        })
    }

    /// Notes that an operation failed and that the machine stands where it stood.
    pub(crate) fn fail(&self, operation: OperationId, why: &str) -> Result<()> {
        self.write("noting a failure", Durability::Process, |transaction| {
            transaction.execute(
                "UPDATE operation SET status = ?2, detail = json_set(detail, '$.error', ?3) WHERE id = ?1",
                params![operation.0, OperationStatus::Failed.to_string(), why],
            )?;
            Ok(())
        })
    }
}

/// Ends an operation that moved the machine, within a transaction.
pub(super) fn arrive(
    transaction: &Transaction<'_>,
    operation: OperationId,
    machine: MachineId,
    target: CheckpointId,
    timeline: Option<TimelineId>,
) -> rusqlite::Result<Position> {
    let timeline = match timeline {
        Some(timeline) => timeline,
        None => timeline::insert(transaction, machine, Some(target))?,
    };
    let position = Position { timeline, checkpoint: target };
    set_position(transaction, machine, position)?;
    transaction
        .prepare_cached("UPDATE operation SET status = ?2, after = ?3, after_timeline = ?4 WHERE id = ?1")?
        .execute(params![operation.0, OperationStatus::Done.to_string(), target.0, timeline.0])?;
    Ok(position)
}

/// Adds an operation.
pub(crate) fn insert(transaction: &Transaction<'_>, new: &NewOperation<'_>) -> rusqlite::Result<OperationId> {
    transaction
        .prepare_cached(
            "INSERT INTO operation (name, machine, kind, status, at_ms, before, before_timeline, after, after_timeline,
                 undoes, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            fresh_name(),
            new.machine.0,
            new.kind.to_string(),
            new.status.to_string(),
            clock::now_ms(),
            new.before.map(|position| position.checkpoint.0),
            new.before.map(|position| position.timeline.0),
            new.after.map(|position| position.checkpoint.0),
            new.after.map(|position| position.timeline.0),
            new.undoes.map(|id| id.0),
            if new.detail.is_null() { "{}".to_owned() } else { new.detail.to_string() },
        ])?;
    Ok(OperationId(transaction.last_insert_rowid()))
}

fn record(row: &Row<'_>) -> Result<OperationRecord, Abort> {
    let name: String = row.get(1)?;
    let unreadable =
        |what: &str| Error::Damaged(Box::new(Damage::catalogue(format!("{what} of operation {name}"))));
    let position = |checkpoint: Option<i64>, timeline: Option<i64>| {
        checkpoint.zip(timeline).map(|(checkpoint, timeline)| Position {
            timeline: TimelineId(timeline),
            checkpoint: CheckpointId(checkpoint),
        })
    };
    Ok(OperationRecord {
        id: OperationId(row.get(0)?),
        machine: MachineId(row.get(2)?),
        kind: row.get::<_, String>(3)?.parse().map_err(|()| unreadable("kind"))?,
        status: row.get::<_, String>(4)?.parse().map_err(|()| unreadable("status"))?,
        at_ms: row.get(5)?,
        before: position(row.get(6)?, row.get(7)?),
        after: position(row.get(8)?, row.get(9)?),
        undoes: row.get::<_, Option<_>>(10)?.map(OperationId),
        detail: serde_json::from_str(&row.get::<_, String>(11)?).map_err(|_| unreadable("detail"))?,
        name,
    })
}
