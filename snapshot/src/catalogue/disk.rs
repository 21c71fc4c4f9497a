use std::collections::HashSet;

use retrovisor_guest::{DiskBase, DiskShape};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::page_version::Keyframe;
use crate::content::ContentRef;
use crate::damage::Damage;
use crate::disk::DiskRecord;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, DiskId, MachineId};
use crate::key::Hash;

/// A disk of a checkpoint that gets another parent: its new rows.
pub(crate) struct ReparentedDisk {
    pub(crate) disk: DiskId,
    pub(crate) changes: Vec<(u64, ContentRef)>,
    pub(crate) changes_hash: Hash,
    pub(crate) keyframe: Option<Keyframe>,
    pub(crate) keyframe_distance: u64,
    pub(crate) keyframe_rows: u64,
}

/// One link of the chain from a disk at a checkpoint back to a full map of it.
#[derive(Clone, Debug)]
pub(crate) struct DiskLink {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) disk: DiskId,
    /// The checkpoint's parent, whether or not it has the disk.
    pub(crate) parent: Option<CheckpointId>,
    pub(crate) changes_hash: Hash,
    pub(crate) keyframe_distance: u64,
    pub(crate) keyframe_rows: u64,
}

/// The rows about a disk of a new checkpoint.
pub(crate) struct NewDiskVersion<'a> {
    pub(crate) disk: DiskId,
    pub(crate) changes: &'a [(u64, ContentRef)],
    pub(crate) keyframe: Option<&'a Keyframe>,
    pub(crate) keyframe_distance: u64,
    pub(crate) keyframe_rows: u64,
}

const DISK: &str = "SELECT d.id, d.machine, d.name, d.size_bytes, d.base FROM disk d";
pub(super) const DISK_LINK: &str =
    "SELECT v.checkpoint, v.disk, c.parent, v.changes_hash, v.keyframe_distance, v.keyframe_rows
    FROM disk_version v JOIN checkpoint c ON c.id = v.checkpoint";

impl Catalogue {
    /// The disks of a machine whose contents are in the store, in the order in which they were added.
    pub fn disks(&self, machine: MachineId) -> Result<Vec<DiskRecord>> {
        self.read("reading the disks of a machine", |reader| disks(reader, machine))
    }

    /// The disks that are in the store at a checkpoint, each with its link.
    pub(crate) fn disks_at(&self, checkpoint: CheckpointId) -> Result<Vec<(DiskRecord, DiskLink)>> {
        self.read("reading the disks of a checkpoint", |reader| {
            let mut links =
                reader.prepare_cached(&format!("{DISK_LINK} WHERE v.checkpoint = ?1 ORDER BY v.disk"))?;
            let links: Vec<DiskLink> = links.query_map([checkpoint.0], link)?.collect::<Result<_, _>>()?;
            let mut disk = reader.prepare_cached(&format!("{DISK} WHERE d.id = ?1"))?;
            let mut found = Vec::new();
            for link in links {
                let record = disk.query_row([link.disk.0], |row| Ok(record(row))).optional()?;
                let missing = || damaged(format!("disk number {} is missing", link.disk));
                found.push((record.ok_or_else(missing)??, link));
            }
            Ok(found)
        })
    }

    /// The machine's disk of this shape; added when there is none.
    pub(crate) fn disk(&self, machine: MachineId, shape: &DiskShape) -> Result<DiskRecord> {
        self.write("recording a disk", Durability::Process, |transaction| {
            let mut known = disks(transaction, machine)?;
            let same = |disk: &DiskRecord| disk.name == shape.name && disk.differs(shape).is_none();
            if let Some(at) = known.iter().rposition(same) {
                return Ok(known.swap_remove(at));
            }
            let base = serde_json::to_string(&shape.base)
                .map_err(|error| Error::Invalid { what: "disk", why: error.to_string() })?;
            transaction.execute(
                "INSERT INTO disk (machine, name, size_bytes, base) VALUES (?1, ?2, ?3, ?4)",
                params![machine.0, shape.name, shape.size_bytes, base],
            )?;
            Ok(DiskRecord {
                id: DiskId(transaction.last_insert_rowid()),
                machine,
                name: shape.name.clone(),
                size_bytes: shape.size_bytes,
                base: shape.base.clone(),
            })
        })
    }

    /// The links of a disk from a checkpoint back to the nearest one with a full map, which is the last.
    pub(crate) fn disk_chain(&self, checkpoint: CheckpointId, disk: DiskId) -> Result<Vec<DiskLink>> {
        self.read("reading the chain of a disk", |reader| {
            let mut statement =
                reader.prepare_cached(&format!("{DISK_LINK} WHERE v.checkpoint = ?1 AND v.disk = ?2"))?;
            let mut links: Vec<DiskLink> = Vec::new();
            let mut next = Some(checkpoint);
            while let Some(at) = next {
                let found = statement.query_row(params![at.0, disk.0], link).optional()?;
                let found = found.ok_or_else(|| {
                    damaged(format!("disk number {disk} is missing at checkpoint number {at}"))
                })?;
                // A parent is always older than its child, so that damaged links cannot form a cycle.
                next = found.parent.filter(|parent| found.keyframe_distance > 0 && *parent < at);
                links.push(found);
            }
            Ok(links)
        })
    }

    /// The blocks of a disk that changed at a checkpoint, ascending.
    pub(crate) fn block_changes_at(
        &self,
        checkpoint: CheckpointId,
        disk: DiskId,
    ) -> Result<Vec<(u64, ContentRef)>> {
        self.read("reading changed blocks", |reader| changes(reader, checkpoint, disk))
    }

    /// The full map of a disk at a checkpoint, if one is stored.
    pub(crate) fn disk_keyframe(&self, checkpoint: CheckpointId, disk: DiskId) -> Result<Option<Keyframe>> {
        self.read("reading a full block map", |reader| keyframe(reader, checkpoint, disk))
    }

    /// The disk snapshots to which a machine's checkpoints refer, by the driver's references. Others belong to no
    /// checkpoint and can be released.
    pub fn referenced_disk_snapshots(&self, machine: MachineId) -> Result<HashSet<String>> {
        self.read("reading which disk snapshots are referenced", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT DISTINCT json_extract(value, '$.reference') FROM state
                 JOIN checkpoint c ON c.id = state.checkpoint, json_each(state.disks) WHERE c.machine = ?1",
            )?;
            let rows = statement.query_map([machine.0], |row| row.get::<_, Option<String>>(0))?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        })
    }

    /// The descriptions of the disks (JSON) of all checkpoints of a machine whose disks are in the store.
    pub(crate) fn stored_disk_states(&self, machine: MachineId) -> Result<Vec<String>> {
        self.read("reading which disk contents are stored", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT s.disks FROM checkpoint c JOIN state s ON s.checkpoint = c.id
                 WHERE c.machine = ?1 AND EXISTS (SELECT 1 FROM disk_version v WHERE v.checkpoint = c.id)",
            )?;
            let rows = statement.query_map([machine.0], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

/// Adds the changes of disks at a checkpoint; `hash` computes the hash of the list of one disk's changes.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    checkpoint: CheckpointId,
    versions: &[NewDiskVersion<'_>],
    hash: impl Fn(DiskId, &[(u64, ContentRef)]) -> Hash,
) -> Result<(), Abort> {
    let mut version = transaction.prepare_cached(
        "INSERT INTO disk_version (checkpoint, disk, changes_hash, keyframe_distance, keyframe_rows)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let mut block = transaction.prepare_cached(
        "INSERT INTO block_version (checkpoint, disk, block, content) VALUES (?1, ?2, ?3, ?4)",
    )?;
    let mut full = transaction
        .prepare_cached("INSERT INTO disk_keyframe (checkpoint, disk, hash, map) VALUES (?1, ?2, ?3, ?4)")?;
    for new in versions {
        let (id, disk) = (checkpoint.0, new.disk.0);
        let hash = hash(new.disk, new.changes);
        version.execute(params![id, disk, hash, new.keyframe_distance, new.keyframe_rows])?;
        for (number, content) in new.changes {
            block.execute(params![id, disk, number, content.code()])?;
        }
        if let Some(keyframe) = new.keyframe {
            full.execute(params![id, disk, keyframe.hash, keyframe.map])?;
        }
    }
    Ok(())
}

/// Replaces the changes of a disk at a checkpoint whose parent has changed.
pub(super) fn replace(
    transaction: &Transaction<'_>,
    checkpoint: CheckpointId,
    disk: &ReparentedDisk,
) -> Result<(), Abort> {
    let old = params![checkpoint.0, disk.disk.0];
    for table in ["disk_version", "block_version"] {
        let delete = format!("DELETE FROM {table} WHERE checkpoint = ?1 AND disk = ?2");
        transaction.prepare_cached(&delete)?.execute(old)?;
    }
    let version = NewDiskVersion {
        disk: disk.disk,
        changes: &disk.changes,
        keyframe: disk.keyframe.as_ref(),
        keyframe_distance: disk.keyframe_distance,
        keyframe_rows: disk.keyframe_rows,
    };
    insert(transaction, checkpoint, &[version], |_, _| disk.changes_hash)
}

pub(super) fn changes(
    reader: &Connection,
    checkpoint: CheckpointId,
    disk: DiskId,
) -> Result<Vec<(u64, ContentRef)>, Abort> {
    let mut statement = reader.prepare_cached(
        "SELECT block, content FROM block_version WHERE checkpoint = ?1 AND disk = ?2 ORDER BY block",
    )?;
    let rows = statement.query_map(params![checkpoint.0, disk.0], |row| {
        Ok((row.get(0)?, ContentRef::from_code(row.get(1)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn keyframe(
    reader: &Connection,
    checkpoint: CheckpointId,
    disk: DiskId,
) -> Result<Option<Keyframe>, Abort> {
    let mut statement =
        reader.prepare_cached("SELECT hash, map FROM disk_keyframe WHERE checkpoint = ?1 AND disk = ?2")?;
    let found = statement
        .query_row(params![checkpoint.0, disk.0], |row| Ok(Keyframe { hash: row.get(0)?, map: row.get(1)? }))
        .optional()?;
    Ok(found)
}

fn disks(reader: &Connection, machine: MachineId) -> Result<Vec<DiskRecord>, Abort> {
    let mut statement = reader.prepare_cached(&format!("{DISK} WHERE d.machine = ?1 ORDER BY d.id"))?;
    let mut rows = statement.query([machine.0])?;
    let mut disks = Vec::new();
    while let Some(row) = rows.next()? {
        disks.push(record(row)?);
    }
    Ok(disks)
}

fn record(row: &Row<'_>) -> Result<DiskRecord, Abort> {
    let name: String = row.get(2)?;
    let base: Option<DiskBase> = serde_json::from_str(&row.get::<_, String>(4)?)
        .map_err(|error| damaged(format!("the base of disk {name} cannot be read: {error}")))?;
    Ok(DiskRecord {
        id: DiskId(row.get(0)?),
        machine: MachineId(row.get(1)?),
        name,
        size_bytes: row.get(3)?,
        base,
    })
}

pub(super) fn link(row: &Row<'_>) -> rusqlite::Result<DiskLink> {
    Ok(DiskLink {
        checkpoint: CheckpointId(row.get(0)?),
        disk: DiskId(row.get(1)?),
        parent: row.get::<_, Option<_>>(2)?.map(CheckpointId),
        changes_hash: row.get(3)?,
        keyframe_distance: row.get(4)?,
        keyframe_rows: row.get(5)?,
    })
}

fn damaged(what: String) -> Error {
    Error::Damaged(Box::new(Damage::catalogue(what)))
}
