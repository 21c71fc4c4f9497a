use std::collections::BTreeMap;

use retrovisor_guest::Gfn;
use rusqlite::{OptionalExtension, Transaction};

use super::abort::Abort;
use super::branch::{self, Branching};
use super::checkpoint::{self, NewCheckpoint};
use super::connection::{Catalogue, Durability};
use super::content::{self, NewContent, NewFrame};
use super::disk::{self, NewDiskVersion};
use super::operation::{self, NewOperation, OperationKind, OperationStatus};
use super::page_version::{self, Keyframe};
use super::position::Position;
use super::state::{self, StoredState};
use crate::content::ContentRef;
use crate::error::Result;
use crate::id::{CheckpointId, DiskId, OperationId, TimelineId};
use crate::key::Hash;

/// What one transaction brings: contents, and the checkpoints that need them.
pub(crate) struct Commit<'a> {
    pub(crate) frames: &'a [NewFrame],
    pub(crate) contents: &'a [NewContent],
    /// For each pack written to, up to where it belongs to the catalogue.
    pub(crate) packs: &'a [(u32, u64)],
    /// Oldest first; each is the parent of the next.
    pub(crate) moments: Vec<Moment<'a>>,
    /// The branch that becomes whole with the first of them, if it does.
    pub(crate) branch: Option<Branching>,
}

/// Everything of one checkpoint that goes into the catalogue.
pub(crate) struct Moment<'a> {
    pub(crate) checkpoint: &'a NewCheckpoint,
    pub(crate) changes: &'a [(Gfn, ContentRef)],
    pub(crate) keyframe: Option<&'a Keyframe>,
    pub(crate) state: &'a StoredState,
    pub(crate) disks: Vec<NewDiskVersion<'a>>,
    pub(crate) noted: Noted<'a>,
}

/// What protects the lists of changes that hang at a checkpoint.
#[expect(clippy::type_complexity, reason = "a parent, a list, its hash")]
pub(crate) struct Hashes<'a> {
    /// Of frames.
    pub(crate) changes: &'a dyn Fn(Option<CheckpointId>, &[(Gfn, ContentRef)]) -> Hash,
    /// Of a disk's blocks.
    pub(crate) blocks: &'a dyn Fn(Option<CheckpointId>, DiskId, &[(u64, ContentRef)]) -> Hash,
}

/// The operation that is recorded with a checkpoint.
pub(crate) enum Noted<'a> {
    /// None: the list of automatic checkpoints is their log.
    Nothing,
    /// Somebody asked for the checkpoint.
    Asked,
    /// The checkpoint is the present, and the machine is about to move.
    Moving(&'a Move),
    /// The checkpoint is the present, and the machine has moved already.
    Moved(&'a Move),
}

/// Where a machine goes.
pub(crate) struct Move {
    pub(crate) kind: OperationKind,
    pub(crate) target: Position,
    /// The timeline to go on in; none for a new one.
    pub(crate) timeline: Option<TimelineId>,
    pub(crate) undoes: Option<OperationId>,
    pub(crate) detail: serde_json::Value,
}

/// A checkpoint that was committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) position: Position,
    pub(crate) operation: Option<OperationId>,
    /// Where the machine stands now: at the checkpoint, or where it moved to.
    pub(crate) stands: Position,
}

impl Catalogue {
    /// Makes checkpoints visible: they are wholly there and safe on the disk when this returns, or none of them is.
    /// The first one hangs at `parent`.
    pub(crate) fn commit(
        &self,
        mut parent: Option<Position>,
        commit: &Commit<'_>,
        hashes: &Hashes<'_>,
    ) -> Result<Vec<Committed>> {
        self.write("committing a checkpoint", Durability::Full, |transaction| {
            insert_contents(transaction, commit)?;
            let mut all = Vec::with_capacity(commit.moments.len());
            let mut branch = commit.branch;
            for moment in &commit.moments {
                let above = parent.map(|parent| parent.checkpoint);
                let changes_hash = (hashes.changes)(above, moment.changes);
                let origin = branch.map(|branch| branch.origin);
                let position =
                    checkpoint::insert(transaction, moment.checkpoint, parent, origin, &changes_hash)?;
                if let Some(branch) = branch.take() {
                    branch::end(transaction, branch, position)?;
                }
                page_version::insert(transaction, position.checkpoint, moment.changes)?;
                if let Some(keyframe) = moment.keyframe {
                    page_version::insert_keyframe(transaction, position.checkpoint, keyframe)?;
                }
                state::insert(transaction, position.checkpoint, moment.state)?;
                disk::insert(transaction, position.checkpoint, &moment.disks, |disk, changes| {
                    (hashes.blocks)(above, disk, changes)
                })?;
                let committed = note(transaction, moment, parent, position)?;
                parent = Some(committed.stands);
                all.push(committed);
            }
            Ok(all)
        })
    }

    /// Records an operation that comes without a checkpoint of its own.
    pub(crate) fn begin(&self, new: &NewOperation<'_>) -> Result<OperationId> {
        self.write("recording an operation", Durability::Full, |transaction| {
            operation::insert(transaction, new).map_err(Abort::from)
        })
    }

    /// What [`Catalogue::packs`] tells, for who goes on writing and cuts off what belongs to nobody: `there` are the
    /// packs on the disk. A pack that frames speak of belongs to the catalogue up to the end of the last of them, also
    /// when its row is lost or wrong.
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

    /// Each pack's number and how many of its bytes belong to the catalogue.
    pub(crate) fn packs(&self) -> Result<Vec<(u32, u64)>> {
        self.read("reading the list of packs", |reader| {
            let mut statement = reader.prepare_cached("SELECT id, committed_bytes FROM pack ORDER BY id")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

/// Adds the contents of a commit.
pub(super) fn insert_contents(transaction: &Transaction<'_>, commit: &Commit<'_>) -> Result<(), Abort> {
    let mut pack = transaction.prepare_cached(
        "INSERT INTO pack (id, committed_bytes) VALUES (?1, ?2)
         ON CONFLICT (id) DO UPDATE SET committed_bytes = excluded.committed_bytes",
    )?;
    for (number, bytes) in commit.packs {
        pack.execute(rusqlite::params![number, bytes])?;
    }
    content::insert(transaction, commit.frames, commit.contents)
}

/// Records the operation that belongs to a checkpoint.
fn note(
    transaction: &Transaction<'_>,
    moment: &Moment<'_>,
    parent: Option<Position>,
    position: Position,
) -> Result<Committed, Abort> {
    let machine = moment.checkpoint.machine;
    let moving = |moving: &Move, status| {
        operation::insert(
            transaction,
            &NewOperation {
                machine,
                kind: moving.kind,
                status,
                before: Some(position),
                after: Some(moving.target),
                undoes: moving.undoes,
                detail: &moving.detail,
            },
        )
    };
    let mut stands = position;
    let operation = match moment.noted {
        Noted::Nothing => None,
        Noted::Asked => Some(operation::insert(
            transaction,
            &NewOperation {
                machine,
                kind: OperationKind::Checkpoint,
                status: OperationStatus::Done,
                before: parent,
                after: Some(position),
                undoes: None,
                detail: &serde_json::Value::Null,
            },
        )?),
        Noted::Moving(to) => Some(moving(to, OperationStatus::Started)?),
        Noted::Moved(to) => {
            let id = moving(to, OperationStatus::Started)?;
            stands = operation::arrive(transaction, id, machine, to.target.checkpoint, to.timeline)?;
            Some(id)
        }
    };
    Ok(Committed { position, operation, stands })
}
