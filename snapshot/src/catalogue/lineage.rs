use retrovisor_guest::Gfn;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::disk;
use super::disk::ReparentedDisk;
use super::fact;
use super::page_version::{self, Keyframe};
use crate::clock;
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId};
use crate::key::Hash;
use crate::mutex::lock;

/// A checkpoint whose parents are removed: the nearest ancestor that stays is its new parent.
pub(crate) struct Reparented<'a> {
    pub(crate) checkpoint: CheckpointId,
    /// Its current parent; if that has changed, nothing is done.
    pub(crate) old_parent: Option<CheckpointId>,
    pub(crate) parent: Option<CheckpointId>,
    /// The changes since the new parent.
    pub(crate) changes: &'a [(Gfn, ContentRef)],
    pub(crate) changes_hash: Hash,
    /// A full map, if the one at the end of its chain is removed.
    pub(crate) keyframe: Option<&'a Keyframe>,
    pub(crate) keyframe_distance: u64,
    pub(crate) keyframe_rows: u64,
    pub(crate) disks: &'a [ReparentedDisk],
}

/// A checkpoint that was pruned and to which an operation or an incident still refers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrunedRecord {
    /// Its number.
    pub id: CheckpointId,
    /// Its short id.
    pub name: String,
    /// The machine.
    pub machine: MachineId,
    /// Its number among the machine's checkpoints.
    pub sequence: u64,
    /// When it was taken: milliseconds since 1970 UTC.
    pub taken_at_ms: i64,
    /// When it was pruned: milliseconds since 1970 UTC.
    pub pruned_at_ms: i64,
}

impl Catalogue {
    /// Makes an ancestor of its parent the parent of a checkpoint. The contents of every checkpoint stay the same.
    /// Returns whether it was done: not if its parent changed meanwhile.
    pub(crate) fn reparent(&self, new: &Reparented<'_>) -> Result<bool> {
        self.write_long("joining the changes of checkpoints", Durability::Process, |transaction| {
            let id = new.checkpoint.0;
            let (parent, distance, rows): (Option<i64>, u64, u64) = transaction.query_row(
                "SELECT parent, keyframe_distance, keyframe_rows FROM checkpoint WHERE id = ?1",
                [id],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            if parent != new.old_parent.map(|id| id.0) {
                return Ok(false);
            }
            transaction.prepare_cached("DELETE FROM page_version WHERE checkpoint = ?1")?.execute([id])?;
            page_version::insert(transaction, new.checkpoint, new.changes)?;
            if let Some(keyframe) = new.keyframe {
                page_version::insert_keyframe(transaction, new.checkpoint, keyframe)?;
            }
            transaction
                .prepare_cached(
                    "UPDATE checkpoint SET parent = ?2, changes_hash = ?3, changed_pages = ?4, keyframe_distance = ?5,
                         keyframe_rows = ?6 WHERE id = ?1",
                )?
                .execute(params![
                    id,
                    new.parent.map(|id| id.0),
                    new.changes_hash,
                    new.changes.len(),
                    new.keyframe_distance,
                    new.keyframe_rows
                ])?;
            // The chains of its descendants are shorter now.
            let nearer = distance.saturating_sub(new.keyframe_distance);
            let fewer = rows.saturating_sub(new.keyframe_rows);
            if nearer > 0 || fewer > 0 {
                transaction
                    .prepare_cached(
                        "WITH RECURSIVE below (id) AS (
                             SELECT id FROM checkpoint WHERE parent = ?1 AND keyframe_distance > 0
                             UNION ALL
                             SELECT c.id FROM checkpoint c JOIN below b ON c.parent = b.id WHERE c.keyframe_distance > 0)
                         UPDATE checkpoint SET keyframe_distance = max(1, keyframe_distance - ?2),
                             keyframe_rows = max(0, keyframe_rows - ?3) WHERE id IN (SELECT id FROM below)",
                    )?
                    .execute(params![id, nearer, fewer])?;
            }
            for disk in new.disks {
                disk::replace(transaction, new.checkpoint, disk)?;
            }
            Ok(true)
        })
    }

    /// Removes checkpoints, newest first, with all their rows. A checkpoint stays if it has a child that stays (a
    /// machine was rolled back to it meanwhile), is current or pinned, or an operation in progress needs it. Returns
    /// how many were removed.
    pub(crate) fn remove_checkpoints(&self, newest_first: &[CheckpointId]) -> Result<u64> {
        // Held until the catalogue has what it says.
        let mut memory = lock(&self.facts);
        memory.forget(newest_first);
        self.write_long("removing checkpoints", Durability::Process, |transaction| {
            let mut removed = Vec::new();
            for id in newest_first {
                if !is_held(transaction, *id)? {
                    remove(transaction, *id)?;
                    removed.push(id.0);
                }
            }
            fact::forget(transaction, &removed)?;
            transaction.execute(
                "DELETE FROM timeline WHERE NOT EXISTS (SELECT 1 FROM checkpoint c WHERE c.timeline = timeline.id)
                     AND NOT EXISTS (SELECT 1 FROM machine m WHERE m.timeline = timeline.id)
                     AND NOT EXISTS (SELECT 1 FROM operation o WHERE o.before_timeline = timeline.id
                         OR o.after_timeline = timeline.id)",
                [],
            )?;
            Ok(removed.len() as u64)
        })
    }

    /// The checkpoint of this number that was pruned, if something still names it.
    pub fn pruned(&self, checkpoint: CheckpointId) -> Result<Option<PrunedRecord>> {
        self.read("looking for a pruned checkpoint", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT checkpoint, name, machine, sequence, taken_at_ms, pruned_at_ms FROM pruned WHERE checkpoint = ?1",
            )?;
            let found = statement.query_row([checkpoint.0], |row| {
                Ok(PrunedRecord {
                    id: CheckpointId(row.get(0)?),
                    name: row.get(1)?,
                    machine: MachineId(row.get(2)?),
                    sequence: row.get(3)?,
                    taken_at_ms: row.get(4)?,
                    pruned_at_ms: row.get(5)?,
                })
            });
            Ok(found.optional()?)
        })
    }

    /// The error for a missing checkpoint: says if it was pruned.
    pub(crate) fn explain_missing(&self, checkpoint: CheckpointId, error: Error) -> Error {
        if !matches!(error, Error::NotFound { what: "checkpoint", .. }) {
            return error;
        }
        match self.pruned(checkpoint) {
            Ok(Some(pruned)) => Error::Pruned { name: pruned.name, sequence: pruned.sequence },
            _ => error,
        }
    }

    /// The checkpoints that are pinned.
    pub(crate) fn pinned(&self, machine: MachineId) -> Result<Vec<CheckpointId>> {
        self.read("reading pins", |reader| {
            let mut statement =
                reader.prepare_cached("SELECT id FROM checkpoint WHERE machine = ?1 AND pinned <> 0")?;
            let rows = statement.query_map([machine.0], |row| Ok(CheckpointId(row.get(0)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Pins or unpins a checkpoint. Returns whether that changed anything.
    pub(crate) fn set_pinned(&self, checkpoint: CheckpointId, pinned: bool) -> Result<bool> {
        self.write("pinning a checkpoint", Durability::Full, |transaction| {
            super::checkpoint::one(transaction, checkpoint)?;
            let changed = transaction
                .prepare_cached("UPDATE checkpoint SET pinned = ?2 WHERE id = ?1 AND pinned <> ?2")?
                .execute(params![checkpoint.0, pinned])?;
            Ok(changed > 0)
        })
    }
}

/// Whether a checkpoint must stay, whatever a plan said earlier.
fn is_held(reader: &Connection, id: CheckpointId) -> rusqlite::Result<bool> {
    reader
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM checkpoint WHERE parent = ?1)
                 OR EXISTS (SELECT 1 FROM machine WHERE checkpoint = ?1)
                 OR EXISTS (SELECT 1 FROM checkpoint WHERE id = ?1 AND pinned <> 0)
                 OR EXISTS (SELECT 1 FROM operation WHERE (status = 'started' OR half_written IS NOT NULL)
                     AND (before = ?1 OR after = ?1))
                 OR NOT EXISTS (SELECT 1 FROM checkpoint WHERE id = ?1)",
        )?
        .query_row([id.0], |row| row.get(0))
}

fn remove(transaction: &Transaction<'_>, id: CheckpointId) -> Result<(), Abort> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO pruned (checkpoint, name, machine, sequence, taken_at_ms, pruned_at_ms)
             SELECT id, name, machine, sequence, taken_at_ms, ?2 FROM checkpoint c WHERE id = ?1 AND (
                 EXISTS (SELECT 1 FROM operation o WHERE o.before = c.id OR o.after = c.id)
                 OR EXISTS (SELECT 1 FROM incident i WHERE i.first_bad = c.id OR i.last_good = c.id))",
        )?
        .execute(params![id.0, clock::now_ms()])?;
    transaction
        .prepare_cached(
            "UPDATE timeline SET origin = (SELECT parent FROM checkpoint WHERE id = ?1) WHERE origin = ?1",
        )?
        .execute([id.0])?;
    let own = [
        "page_version",
        "keyframe",
        "state",
        "section",
        "verdict",
        "feature",
        "damage",
        "block_version",
        "disk_keyframe",
        "disk_version",
    ];
    for table in own {
        transaction.prepare_cached(&format!("DELETE FROM {table} WHERE checkpoint = ?1"))?.execute([id.0])?;
    }
    transaction.prepare_cached("DELETE FROM checkpoint WHERE id = ?1")?.execute([id.0])?;
    Ok(())
}
