use retrovisor_guest::Gfn;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::abort::Abort;
use super::connection::Catalogue;
use crate::content::ContentRef;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId};
use crate::key::Hash;

/// One link of the chain from a checkpoint back to a full map.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) machine: MachineId,
    pub(crate) parent: Option<CheckpointId>,
    pub(crate) changes_hash: Hash,
    pub(crate) keyframe_distance: u64,
    pub(crate) keyframe_rows: u64,
}

/// A full map as stored: its hash and its compressed bytes.
pub(crate) struct Keyframe {
    pub(crate) hash: Hash,
    pub(crate) map: Vec<u8>,
}

/// One state of a page in its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageVersion {
    /// The checkpoint at which the page had changed.
    pub checkpoint: CheckpointId,
    /// Its short id.
    pub checkpoint_name: String,
    /// Its number among the machine's checkpoints.
    pub sequence: u64,
    /// The content of the page from then on.
    pub content: ContentRef,
}

impl Catalogue {
    /// The checkpoints of the machine at which the page's contents changed, on all timelines, in the order of taking,
    /// and its content then. Before the first of them the page was zero.
    pub fn page_history(&self, machine: MachineId, gfn: Gfn) -> Result<Vec<PageVersion>> {
        self.read("reading the history of a page", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT c.id, c.name, c.sequence, v.content FROM checkpoint c
                 CROSS JOIN page_version v ON v.checkpoint = c.id AND v.gfn = ?2
                 WHERE c.machine = ?1 ORDER BY c.sequence",
            )?;
            let rows = statement.query_map(params![machine.0, gfn.0], |row| {
                Ok(PageVersion {
                    checkpoint: CheckpointId(row.get(0)?),
                    checkpoint_name: row.get(1)?,
                    sequence: row.get(2)?,
                    content: ContentRef::from_code(row.get(3)?),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The frames that changed at a checkpoint, ascending.
    pub(crate) fn changes_at(&self, checkpoint: CheckpointId) -> Result<Vec<(Gfn, ContentRef)>> {
        self.read("reading changed pages", |reader| changes(reader, checkpoint))
    }

    /// Number of frames that changed at a checkpoint.
    pub(crate) fn change_count(&self, checkpoint: CheckpointId) -> Result<u64> {
        self.read("counting changed pages", |reader| {
            let mut statement =
                reader.prepare_cached("SELECT count(*) FROM page_version WHERE checkpoint = ?1")?;
            Ok(statement.query_row([checkpoint.0], |row| row.get(0))?)
        })
    }

    /// The links from a checkpoint back to the nearest one with a keyframe, which is the last.
    pub(crate) fn chain(&self, checkpoint: CheckpointId) -> Result<Vec<Link>> {
        self.read("reading the chain of a checkpoint", |reader| {
            let mut links = vec![link(reader, checkpoint)?];
            while let Some(last) = links.last().filter(|last| last.keyframe_distance > 0) {
                // A parent is always older than its child, so that damaged links cannot form a cycle.
                let parent = last.parent.filter(|parent| *parent < last.checkpoint).ok_or_else(|| {
                    let what = format!("the chain of checkpoint number {checkpoint} ends without a full map");
                    Error::Damaged(Box::new(Damage::catalogue(what)))
                })?;
                links.push(link(reader, parent)?);
            }
            Ok(links)
        })
    }

    /// One link.
    pub(crate) fn link(&self, checkpoint: CheckpointId) -> Result<Link> {
        self.read("reading a checkpoint", |reader| link(reader, checkpoint))
    }

    /// A link, if it is still there and still the same.
    pub(crate) fn same_link(&self, known: &Link) -> Result<Option<Link>> {
        match self.link(known.checkpoint) {
            Ok(now) if now.parent == known.parent && now.changes_hash == known.changes_hash => Ok(Some(now)),
            Ok(_) | Err(Error::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// The full map at a checkpoint, if one is stored.
    pub(crate) fn keyframe(&self, checkpoint: CheckpointId) -> Result<Option<Keyframe>> {
        self.read("reading a full map", |reader| keyframe(reader, checkpoint))
    }

    /// The newest checkpoint of the store; 0 if there is none.
    pub(crate) fn newest_checkpoint(&self) -> Result<CheckpointId> {
        self.read("reading the newest checkpoint", |reader| {
            let newest: Option<i64> =
                reader.query_row("SELECT max(id) FROM checkpoint", [], |row| row.get(0))?;
            Ok(CheckpointId(newest.unwrap_or(0)))
        })
    }

    /// Every link of the store, in the order of taking, which is parents first.
    pub(crate) fn links(&self) -> Result<Vec<Link>> {
        self.links_after(CheckpointId(i64::MIN))
    }

    /// Every link of checkpoints taken after one.
    pub(crate) fn links_after(&self, after: CheckpointId) -> Result<Vec<Link>> {
        self.read("reading checkpoints", |reader| {
            let mut statement = reader.prepare_cached(&format!("{LINK} WHERE id > ?1 ORDER BY id"))?;
            let rows = statement.query_map([after.0], link_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

pub(super) fn changes(
    reader: &Connection,
    checkpoint: CheckpointId,
) -> Result<Vec<(Gfn, ContentRef)>, Abort> {
    let mut statement =
        reader.prepare_cached("SELECT gfn, content FROM page_version WHERE checkpoint = ?1 ORDER BY gfn")?;
    let rows = statement
        .query_map([checkpoint.0], |row| Ok((Gfn(row.get(0)?), ContentRef::from_code(row.get(1)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn keyframe(reader: &Connection, checkpoint: CheckpointId) -> Result<Option<Keyframe>, Abort> {
    let mut statement = reader.prepare_cached("SELECT hash, map FROM keyframe WHERE checkpoint = ?1")?;
    let found = statement
        .query_row([checkpoint.0], |row| Ok(Keyframe { hash: row.get(0)?, map: row.get(1)? }))
        .optional()?;
    Ok(found)
}

/// Adds the frames that changed at a checkpoint.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    checkpoint: CheckpointId,
    changes: &[(Gfn, ContentRef)],
) -> Result<(), Abort> {
    let mut add = transaction
        .prepare_cached("INSERT INTO page_version (checkpoint, gfn, content) VALUES (?1, ?2, ?3)")?;
    for (gfn, content) in changes {
        add.execute(params![checkpoint.0, gfn.0, content.code()])?;
    }
    Ok(())
}

/// Adds a full map.
pub(crate) fn insert_keyframe(
    transaction: &Transaction<'_>,
    checkpoint: CheckpointId,
    keyframe: &Keyframe,
) -> Result<(), Abort> {
    transaction
        .prepare_cached("INSERT INTO keyframe (checkpoint, hash, map) VALUES (?1, ?2, ?3)")?
        .execute(params![checkpoint.0, keyframe.hash, keyframe.map])?;
    Ok(())
}

pub(super) const LINK: &str =
    "SELECT id, machine, parent, changes_hash, keyframe_distance, keyframe_rows FROM checkpoint";

pub(super) fn link(reader: &Connection, checkpoint: CheckpointId) -> Result<Link, Abort> {
    let mut statement = reader.prepare_cached(&format!("{LINK} WHERE id = ?1"))?;
    let found = statement.query_row([checkpoint.0], link_row).optional()?;
    found.ok_or_else(|| super::checkpoint::not_found(&checkpoint.to_string()).into())
}

pub(super) fn link_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Link> {
    Ok(Link {
        checkpoint: CheckpointId(row.get(0)?),
        machine: MachineId(row.get(1)?),
        parent: row.get::<_, Option<_>>(2)?.map(CheckpointId),
        changes_hash: row.get(3)?,
        keyframe_distance: row.get(4)?,
        keyframe_rows: row.get(5)?,
    })
}
