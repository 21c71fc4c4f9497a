use rusqlite::{Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::position::{self, Position};
use super::timeline;
use super::words::words;
use crate::clock;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId, OperationId, TimelineId, fresh_name};

words!(
    /// The kind of an operation.
    OperationKind {
        /// A checkpoint that was requested. (Automatic ones are not operations: the list of checkpoints is their log.)
        Checkpoint = "checkpoint",
        /// A rollback to an earlier checkpoint.
        Rollback = "rollback",
        /// An operation was undone.
        Undo = "undo",
        /// An undo was undone.
        Redo = "redo",
        /// A checkpoint was loaded into a new process.
        Restore = "restore",
        /// A fault was injected.
        Inject = "inject",
        /// Checkpoints were removed.
        Prune = "prune",
        /// The machine was imported from an archive or a dump.
        Import = "import",
        /// A checkpoint was pinned or unpinned.
        Pin = "pin",
        /// The machine began as a branch of another one: `before` is that one's checkpoint, `after` its own first.
        Branch = "branch",
    }
);

words!(
    /// The status of an operation.
    OperationStatus {
        /// In progress. An operation that a crash interrupted is marked as failed when the store is opened for
        /// writing.
        Started = "started",
        /// Done.
        Done = "done",
        /// Failed: the machine's position is the one before the operation.
        Failed = "failed",
    }
);

impl OperationKind {
    /// Whether it moves the machine to another checkpoint, and so is a [`RollbackKind`].
    #[must_use]
    pub fn moves(self) -> bool {
        matches!(self, Self::Rollback | Self::Undo | Self::Redo | Self::Restore)
    }
}

/// The kinds of moves to another checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackKind {
    /// In place, to a checkpoint that was chosen.
    Rollback,
    /// In place, to the state before the last rollback that is not undone.
    Undo,
    /// In place, to the state before the last undo that is not redone.
    Redo,
    /// A checkpoint is loaded into a process whose memory is unknown.
    Restore,
}

impl From<RollbackKind> for OperationKind {
    fn from(kind: RollbackKind) -> Self {
        match kind {
            RollbackKind::Rollback => Self::Rollback,
            RollbackKind::Undo => Self::Undo,
            RollbackKind::Redo => Self::Redo,
            RollbackKind::Restore => Self::Restore,
        }
    }
}

/// An operation on a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationRecord {
    /// The number that joins the tables.
    pub id: OperationId,
    /// The short id, for users.
    pub name: String,
    /// The machine.
    pub machine: MachineId,
    /// Its kind.
    pub kind: OperationKind,
    /// Its status.
    pub status: OperationStatus,
    /// When it began: milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// The machine's position before; none when it had no checkpoint.
    pub before: Option<Position>,
    /// Its position after. Unless the operation is done: the target, on the timeline of the target.
    pub after: Option<Position>,
    /// The operation that this one undoes or redoes.
    pub undoes: Option<OperationId>,
    /// Details of the caller (reason, user): a JSON object.
    pub detail: serde_json::Value,
    /// The process whose memory this operation may have left half written, as [`crate::Recorder::set_process`] names
    /// it; empty when it was not named. None when no memory is half written.
    pub half_written: Option<String>,
}

impl OperationRecord {
    /// Whether this operation may have left the memory of that process half written, so that the process must be moved
    /// to a checkpoint before it may run. An operation of an unnamed process may concern any process.
    #[must_use]
    pub fn concerns_process(&self, process: &str) -> bool {
        self.half_written.as_deref().is_some_and(|half| half.is_empty() || half == process)
    }
}

/// The row of a new operation.
pub(crate) struct NewOperation<'a> {
    pub(crate) machine: MachineId,
    pub(crate) kind: OperationKind,
    pub(crate) status: OperationStatus,
    pub(crate) before: Option<Position>,
    pub(crate) after: Option<Position>,
    pub(crate) undoes: Option<OperationId>,
    pub(crate) detail: &'a serde_json::Value,
    /// The process whose memory may be half written from now on.
    pub(crate) half_written: Option<&'a str>,
}

/// The kinds that move the machine, as SQL.
const MOVING: &str = "'rollback', 'undo', 'redo', 'restore'";

const COLUMNS: &str = "id, name, machine, kind, status, at_ms, before, before_timeline, after, after_timeline, undoes, detail, half_written";

impl Catalogue {
    /// The machine's operations, oldest first.
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

    /// Records an operation that leaves the machine's position as it is.
    pub fn note_operation(
        &self,
        machine: MachineId,
        kind: OperationKind,
        detail: &serde_json::Value,
    ) -> Result<OperationRecord> {
        if kind.moves() {
            let why = format!("{kind} moves the machine: the recorder records it");
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
            half_written: None,
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
                    help: "`retrovisor log` lists them all",
                }
                .into()),
            }
        })
    }

    /// The rollback, undo, redo or restore that may have left a process's memory half written, if the machine's last
    /// one did: it failed and could not be reverted, or a crash interrupted it. That process (and no other, see
    /// [`OperationRecord::concerns_process`]) must be moved to a checkpoint before it may run.
    pub fn interrupted(&self, machine: MachineId) -> Result<Option<OperationRecord>> {
        let last = self.operations(machine)?.into_iter().rfind(|operation| operation.kind.moves());
        Ok(last.filter(|operation| operation.half_written.is_some()))
    }

    /// Marks an operation that moved the machine as done: its position is the target now, on a new timeline unless
    /// `timeline` is given.
    pub(crate) fn complete_rollback(
        &self,
        operation: OperationId,
        machine: MachineId,
        target: CheckpointId,
        timeline: Option<TimelineId>,
        durability: Durability,
    ) -> Result<Position> {
        self.write("recording a rollback", durability, |transaction| {
            Ok(complete(transaction, operation, machine, target, timeline)?)
        })
    }

    /// Marks the machine's rollbacks, undos, redos and restores that are started as failed: there is one at most.
    /// Unless `is_memory_whole`, it stays known which process's memory may be half written.
    pub(crate) fn fail_rollbacks(&self, machine: MachineId, why: &str, is_memory_whole: bool) -> Result<()> {
        self.write("recording a failure", Durability::Process, |transaction| {
            transaction.execute(
                &format!(
                    "UPDATE operation SET status = 'failed', detail = json_set(detail, '$.error', ?2),
                         half_written = CASE WHEN ?3 THEN NULL ELSE half_written END
                     WHERE machine = ?1 AND status = 'started' AND kind IN ({MOVING})"
                ),
                params![machine.0, why, is_memory_whole],
            )?;
            Ok(())
        })
    }

    /// Marks all operations that are started as failed, because a process that ended did them; but for branches, which
    /// [`Catalogue::remove_incomplete_branches`] removes. Only when the store is opened for writing.
    pub(crate) fn fail_interrupted(&self) -> Result<()> {
        let interrupted =
            "SELECT EXISTS (SELECT 1 FROM operation WHERE status = 'started' AND kind <> 'branch')";
        let any = self.read("looking for interrupted operations", |reader| {
            Ok(reader.query_row(interrupted, [], |row| row.get::<_, bool>(0))?)
        })?;
        if !any {
            return Ok(());
        }
        self.write("recording interrupted operations", Durability::Full, |transaction| {
            transaction.execute(
                "UPDATE operation SET status = 'failed', detail = json_set(detail, '$.error', ?1)
                 WHERE status = 'started' AND kind <> 'branch'",
                ["the process that did it ended before it was done"],
            )?;
            Ok(())
        })
    }

    /// The machine has a new process: a half-written memory is gone with the old one.
    pub(crate) fn forget_half_written(&self, machine: MachineId) -> Result<()> {
        if self.interrupted(machine)?.is_none() {
            return Ok(());
        }
        self.write("recording a new process", Durability::Full, |transaction| {
            transaction.execute(
                "UPDATE operation SET half_written = NULL WHERE machine = ?1 AND half_written IS NOT NULL",
                [machine.0],
            )?;
            Ok(())
        })
    }

    /// Ends an operation that does not move the machine; `note` (a JSON object) is added to its detail.
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
}

/// Marks an operation that moved the machine as done, within a transaction.
pub(super) fn complete(
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
    position::set(transaction, machine, position)?;
    transaction
        .prepare_cached("UPDATE operation SET status = ?2, after = ?3, after_timeline = ?4, half_written = NULL WHERE id = ?1")?
        .execute(params![operation.0, OperationStatus::Done.to_string(), target.0, timeline.0])?;
    Ok(position)
}

/// Adds an operation.
pub(crate) fn insert(transaction: &Transaction<'_>, new: &NewOperation<'_>) -> rusqlite::Result<OperationId> {
    transaction
        .prepare_cached(
            "INSERT INTO operation (name, machine, kind, status, at_ms, before, before_timeline, after, after_timeline,
                 undoes, detail, half_written) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
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
            new.half_written,
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
        half_written: row.get(12)?,
        name,
    })
}
