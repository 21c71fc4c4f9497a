use std::collections::BTreeMap;

use retrovisor_guest::Gfn;
use rusqlite::{OptionalExtension, Transaction};

use super::abort::Abort;
use super::branch::{self, Branching};
use super::checkpoint::{self, NewCheckpoint};
use super::connection::{Catalogue, Durability};
use super::content::{self, NewContent, NewFrame};
use super::disk::{self, NewDiskVersion};
use super::operation::{self, NewOperation, OperationKind, OperationStatus, RollbackKind};
use super::page_version::{self, Keyframe};
use super::position::Position;
use super::state::{self, StoredState};
use crate::content::ContentRef;
use crate::error::Result;
use crate::id::{CheckpointId, DiskId, OperationId, TimelineId};
use crate::key::Hash;

/// Contents that are on the disk, and that a transaction adds to the catalogue.
#[derive(Clone, Copy)]
pub(crate) struct NewContents<'a> {
    pub(crate) frames: &'a [NewFrame],
    pub(crate) contents: &'a [NewContent],
    /// For each pack written to, the length up to which it is committed.
    pub(crate) packs: &'a [(u32, u64)],
}

/// The input of one transaction: contents, and the checkpoints that refer to them.
pub(crate) struct CommitBatch<'a> {
    pub(crate) contents: NewContents<'a>,
    /// Oldest first; each is the parent of the next.
    pub(crate) checkpoints: Vec<PreparedCheckpoint<'a>>,
    /// The branch that is complete with the first of them, if it is a branch.
    pub(crate) branch: Option<Branching>,
}

/// The rows of one checkpoint.
pub(crate) struct PreparedCheckpoint<'a> {
    pub(crate) checkpoint: &'a NewCheckpoint,
    pub(crate) changes: &'a [(Gfn, ContentRef)],
    pub(crate) keyframe: Option<&'a Keyframe>,
    pub(crate) state: &'a StoredState,
    pub(crate) disks: Vec<NewDiskVersion<'a>>,
    pub(crate) operation: RecordedOperation<'a>,
}

/// Makes the hashes that protect a checkpoint's lists of changes.
#[expect(clippy::type_complexity, reason = "a parent, a list, its hash")]
pub(crate) struct Hashes<'a> {
    /// Of frames.
    pub(crate) changes: &'a dyn Fn(Option<CheckpointId>, &[(Gfn, ContentRef)]) -> Hash,
    /// Of a disk's blocks.
    pub(crate) blocks: &'a dyn Fn(Option<CheckpointId>, DiskId, &[(u64, ContentRef)]) -> Hash,
}

/// The operation that is recorded with a checkpoint.
pub(crate) enum RecordedOperation<'a> {
    /// None: automatic checkpoints are recorded in the list of checkpoints only.
    None,
    /// The checkpoint was requested.
    Checkpoint,
    /// The checkpoint is the state before a rollback that begins now.
    RollbackStarted(&'a Rollback),
    /// The checkpoint is the state before a rollback that is done already.
    RollbackDone(&'a Rollback),
}

/// A recorded move of a machine to another checkpoint.
pub(crate) struct Rollback {
    pub(crate) kind: RollbackKind,
    pub(crate) target: Position,
    /// The timeline to continue; none for a new one.
    pub(crate) timeline: Option<TimelineId>,
    pub(crate) undoes: Option<OperationId>,
    pub(crate) detail: serde_json::Value,
    /// The process that is moved; empty when it is not named.
    pub(crate) process: String,
}

/// A checkpoint that was committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) position: Position,
    /// Its number among the machine's checkpoints.
    pub(crate) sequence: u64,
    pub(crate) operation: Option<OperationId>,
    /// The machine's position now: the checkpoint, or the target of a rollback that is done.
    pub(crate) current: Position,
}

impl Catalogue {
    /// Makes checkpoints visible: all of them are complete and durable when this returns, or none of them exists.
    /// `parent` is the parent of the first one.
    pub(crate) fn commit(
        &self,
        mut parent: Option<Position>,
        commit: &CommitBatch<'_>,
        hashes: &Hashes<'_>,
    ) -> Result<Vec<Committed>> {
        self.write("committing a checkpoint", Durability::Full, |transaction| {
            insert_contents(transaction, commit.contents)?;
            let mut all = Vec::with_capacity(commit.checkpoints.len());
            let mut branch = commit.branch;
            for new in &commit.checkpoints {
                let above = parent.map(|parent| parent.checkpoint);
                let changes_hash = (hashes.changes)(above, new.changes);
                let origin = branch.map(|branch| branch.origin);
                let (position, sequence) =
                    checkpoint::insert(transaction, new.checkpoint, parent, origin, &changes_hash)?;
                if let Some(branch) = branch.take() {
                    branch::end(transaction, branch, position)?;
                }
                page_version::insert(transaction, position.checkpoint, new.changes)?;
                if let Some(keyframe) = new.keyframe {
                    page_version::insert_keyframe(transaction, position.checkpoint, keyframe)?;
                }
                state::insert(transaction, position.checkpoint, new.state)?;
                disk::insert(transaction, position.checkpoint, &new.disks, |disk, changes| {
                    (hashes.blocks)(above, disk, changes)
                })?;
                let committed = record_operation(transaction, new, parent, position, sequence)?;
                parent = Some(committed.current);
                all.push(committed);
            }
            Ok(all)
        })
    }

    /// Adds contents that no checkpoint refers to yet.
    pub(crate) fn add_contents(&self, contents: NewContents<'_>) -> Result<()> {
        self.write("adding contents", Durability::Full, |transaction| insert_contents(transaction, contents))
    }

    /// Records an operation that comes without a checkpoint of its own.
    pub(crate) fn begin(&self, new: &NewOperation<'_>) -> Result<OperationId> {
        self.write("recording an operation", Durability::Full, |transaction| {
            operation::insert(transaction, new).map_err(Abort::from)
        })
    }

    /// [`Catalogue::packs`], for a writer that truncates uncommitted data; `there` are the packs on the disk. A pack to
    /// which frames refer is committed up to the end of the last of them, even if its row is missing or wrong.
    pub(crate) fn packs_in_use(&self, there: &[u32]) -> Result<Vec<(u32, u64)>> {
        let mut packs: BTreeMap<u32, u64> = self.packs()?.into_iter().collect();
        let last = packs.keys().next_back().copied();
        let unsure: Vec<u32> = there
            .iter()
            .copied()
            .filter(|number| Some(*number) == last || !packs.contains_key(number))
            .collect();
        self.read("reading the list of packs", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT offset, stored_bytes FROM frame WHERE pack = ?1 ORDER BY id DESC LIMIT 1",
            )?;
            for number in unsure {
                let end: Option<(u64, u64)> =
                    statement.query_row([number], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
                if let Some((offset, bytes)) = end {
                    let committed = packs.entry(number).or_default();
                    *committed = offset.saturating_add(bytes).max(*committed);
                }
            }
            Ok(())
        })?;
        Ok(packs.into_iter().collect())
    }

    /// Each pack's number and committed length.
    pub(crate) fn packs(&self) -> Result<Vec<(u32, u64)>> {
        self.read("reading the list of packs", |reader| {
            let mut statement = reader.prepare_cached("SELECT id, committed_bytes FROM pack ORDER BY id")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

/// Adds the contents of a commit.
pub(super) fn insert_contents(transaction: &Transaction<'_>, new: NewContents<'_>) -> Result<(), Abort> {
    let mut pack = transaction.prepare_cached(
        "INSERT INTO pack (id, committed_bytes) VALUES (?1, ?2)
         ON CONFLICT (id) DO UPDATE SET committed_bytes = excluded.committed_bytes",
    )?;
    for (number, bytes) in new.packs {
        pack.execute(rusqlite::params![number, bytes])?;
    }
    content::insert(transaction, new.frames, new.contents)
}

/// Records the operation that belongs to a checkpoint.
fn record_operation(
    transaction: &Transaction<'_>,
    new: &PreparedCheckpoint<'_>,
    parent: Option<Position>,
    position: Position,
    sequence: u64,
) -> Result<Committed, Abort> {
    let machine = new.checkpoint.machine;
    let start = |rollback: &Rollback| {
        operation::insert(
            transaction,
            &NewOperation {
                machine,
                kind: rollback.kind.into(),
                status: OperationStatus::Started,
                before: Some(position),
                after: Some(rollback.target),
                undoes: rollback.undoes,
                detail: &rollback.detail,
                half_written: Some(&rollback.process),
            },
        )
    };
    let mut current = position;
    let operation = match new.operation {
        RecordedOperation::None => None,
        RecordedOperation::Checkpoint => Some(operation::insert(
            transaction,
            &NewOperation {
                machine,
                kind: OperationKind::Checkpoint,
                status: OperationStatus::Done,
                before: parent,
                after: Some(position),
                undoes: None,
                detail: &serde_json::Value::Null,
                half_written: None,
            },
        )?),
        RecordedOperation::RollbackStarted(rollback) => Some(start(rollback)?),
        RecordedOperation::RollbackDone(rollback) => {
            let id = start(rollback)?;
            let target = rollback.target.checkpoint;
            current = operation::complete(transaction, id, machine, target, rollback.timeline)?;
            Some(id)
        }
    };
    Ok(Committed { position, sequence, operation, current })
}
