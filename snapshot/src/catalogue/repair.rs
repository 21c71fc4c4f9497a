use std::collections::BTreeSet;

use retrovisor_guest::Gfn;
use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::connection::{Catalogue, Durability};
use super::content::prefix;
use super::garbage::FrameRow;
use super::page_version::{self, Keyframe};
use crate::clock;
use crate::content::{ContentId, ContentRef};
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId};
use crate::key::Hash;

/// The setting that lists damaged contents.
const LOST: &str = "lost_contents";

/// A part of a checkpoint that is lost permanently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamageMark {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its short id.
    pub checkpoint_name: String,
    /// What is lost.
    pub what: String,
    /// When a repair found it: milliseconds since 1970 UTC.
    pub found_at_ms: i64,
}

impl Catalogue {
    /// The damage marks of a machine's checkpoints, oldest checkpoints first.
    pub fn damage_marks(&self, machine: MachineId) -> Result<Vec<DamageMark>> {
        self.read("reading damage marks", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT d.checkpoint, c.name, d.what, d.found_at_ms FROM damage d JOIN checkpoint c ON c.id = d.checkpoint
                 WHERE c.machine = ?1 ORDER BY d.checkpoint, d.what",
            )?;
            let rows = statement.query_map([machine.0], |row| {
                Ok(DamageMark {
                    checkpoint: CheckpointId(row.get(0)?),
                    checkpoint_name: row.get(1)?,
                    what: row.get(2)?,
                    found_at_ms: row.get(3)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Refuses a checkpoint that is marked.
    pub(crate) fn must_be_whole(&self, checkpoint: CheckpointId, name: &str) -> Result<()> {
        let what: Option<String> = self.read("reading damage marks", |reader| {
            let mut statement = reader
                .prepare_cached("SELECT what FROM damage WHERE checkpoint = ?1 ORDER BY what LIMIT 1")?;
            Ok(statement.query_row([checkpoint.0], |row| row.get(0)).optional()?)
        })?;
        what.map_or(Ok(()), |what| Err(Error::Lost { name: name.to_owned(), what }))
    }

    /// The checkpoints that are marked.
    pub(crate) fn marked(&self) -> Result<BTreeSet<CheckpointId>> {
        self.read("reading damage marks", |reader| {
            let mut statement = reader.prepare_cached("SELECT DISTINCT checkpoint FROM damage")?;
            let rows = statement.query_map([], |row| Ok(CheckpointId(row.get(0)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Marks exactly these checkpoints. Returns the short ids of those that were marked before and are not now.
    pub(crate) fn set_damage_marks(&self, marks: &[(CheckpointId, &str)]) -> Result<Vec<String>> {
        let marked: BTreeSet<i64> = marks.iter().map(|(id, _)| id.0).collect();
        self.write("marking damaged checkpoints", Durability::Full, |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT DISTINCT c.id, c.name FROM damage d JOIN checkpoint c ON c.id = d.checkpoint ORDER BY c.id",
            )?;
            let before = statement
                .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?
                .collect::<Result<Vec<_>, _>>()?;
            let gone: Vec<_> = before.into_iter().filter(|(id, _)| !marked.contains(id)).collect();
            for (id, _) in &gone {
                transaction.execute("DELETE FROM damage WHERE checkpoint = ?1", [id])?;
            }
            let mut add = transaction.prepare_cached(
                "INSERT OR IGNORE INTO damage (checkpoint, what, found_at_ms) VALUES (?1, ?2, ?3)",
            )?;
            for (id, what) in marks {
                add.execute(params![id.0, what, clock::now_ms()])?;
            }
            Ok(gone.into_iter().map(|(_, name)| name).collect())
        })
    }

    /// Contents that were found damaged by the last repair.
    pub(crate) fn lost_contents(&self) -> Result<Vec<ContentId>> {
        let list = self.setting(LOST)?.unwrap_or_default();
        Ok(list.as_chunks().0.iter().map(|bytes| ContentId(u64::from_le_bytes(*bytes))).collect())
    }

    /// Stores which contents are damaged.
    pub(crate) fn set_lost_contents(&self, contents: &[ContentId]) -> Result<()> {
        let list: Vec<u8> = contents.iter().flat_map(|id| id.0.to_le_bytes()).collect();
        self.set_settings(&[(LOST, &list)])
    }

    /// The hashes of those of the contents that exist.
    pub(crate) fn hashes(&self, contents: &BTreeSet<u64>) -> Result<Vec<(ContentId, Hash)>> {
        self.read("reading hashes", |reader| {
            let mut statement = reader.prepare_cached("SELECT hash FROM content WHERE id = ?1")?;
            let mut found = Vec::new();
            for id in contents {
                let hash: Option<Vec<u8>> = statement.query_row([id], |row| row.get(0)).optional()?;
                if let Some(hash) = hash.and_then(|bytes| bytes.try_into().ok()) {
                    found.push((ContentId(*id), hash));
                }
            }
            Ok(found)
        })
    }

    /// The entries of the index of hashes for contents.
    pub(crate) fn indexed_prefixes(&self, contents: &BTreeSet<u64>) -> Result<Vec<(ContentId, u64)>> {
        self.read("reading the index of hashes", |reader| {
            let mut statement = reader.prepare("SELECT content, prefix FROM content_index")?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let id: u64 = row.get(0)?;
                if contents.contains(&id) {
                    found.push((ContentId(id), row.get::<_, i64>(1)?.cast_unsigned()));
                }
            }
            Ok(found)
        })
    }

    /// How many rows of the index of hashes are wrong or missing.
    pub(crate) fn wrong_index_rows(&self) -> Result<u64> {
        let indexed = self.indexed_upto()?;
        self.read("checking the index of hashes", |reader| {
            let mut wrong = 0;
            let mut statement = reader.prepare(
                "SELECT i.prefix, c.hash FROM content_index i LEFT JOIN content c ON c.id = i.content",
            )?;
            let mut rows = statement.query([])?;
            let mut right = 0_u64;
            while let Some(row) = rows.next()? {
                let hash: Option<Hash> = row.get(1)?;
                let part: i64 = row.get(0)?;
                if hash.is_some_and(|hash| prefix(&hash).cast_signed() == part) {
                    right += 1;
                } else {
                    wrong += 1;
                }
            }
            let expected: u64 =
                reader
                    .query_row("SELECT count(*) FROM content WHERE id <= ?1", [indexed], |row| row.get(0))?;
            Ok(wrong + expected.saturating_sub(right))
        })
    }

    /// Rebuilds the index of hashes from all contents.
    pub(crate) fn rebuild_index(&self) -> Result<()> {
        self.write("rebuilding the index of hashes", Durability::Full, |transaction| {
            transaction.execute("DELETE FROM content_index", [])?;
            let mut statement = transaction.prepare("SELECT id, hash FROM content")?;
            let mut rows = statement.query([])?;
            let mut all: Vec<(i64, i64)> = Vec::new();
            while let Some(row) = rows.next()? {
                all.push((prefix(&row.get(1)?).cast_signed(), row.get(0)?));
            }
            all.sort_unstable();
            let mut add = transaction
                .prepare("INSERT OR IGNORE INTO content_index (prefix, content) VALUES (?1, ?2)")?;
            for (part, id) in &all {
                add.execute([part, id])?;
            }
            let upto = all.iter().map(|(_, id)| *id).max().unwrap_or(0);
            super::setting::set(transaction, super::content::INDEXED, &upto.to_le_bytes())?;
            Ok(())
        })
    }

    /// Changes the frame of a content.
    pub(crate) fn relink(&self, id: ContentId, hash: &Hash, frame: &FrameRow, slot: u32) -> Result<()> {
        self.write("linking a content", Durability::Process, |transaction| {
            let known: Option<i64> = transaction
                .prepare_cached(
                    "SELECT id FROM frame WHERE pack = ?1 AND offset = ?2 AND stored_bytes = ?3 AND pages = ?4",
                )?
                .query_row(params![frame.pack, frame.offset, frame.stored_bytes, frame.pages], |row| row.get(0))
                .optional()?;
            let row = if let Some(row) = known {
                row
            } else {
                transaction.execute(
                    "INSERT INTO frame (pack, offset, stored_bytes, pages) VALUES (?1, ?2, ?3, ?4)",
                    params![frame.pack, frame.offset, frame.stored_bytes, frame.pages],
                )?;
                transaction.last_insert_rowid()
            };
            transaction.execute(
                "INSERT OR REPLACE INTO content (id, hash, frame, slot) VALUES (?1, ?2, ?3, ?4)",
                params![id.0, hash, row, slot],
            )?;
            Ok(())
        })
    }

    /// Corrects the parent of a checkpoint.
    pub(crate) fn set_parent(&self, checkpoint: CheckpointId, parent: CheckpointId) -> Result<()> {
        self.write("correcting the parent of a checkpoint", Durability::Full, |transaction| {
            transaction
                .execute("UPDATE checkpoint SET parent = ?2 WHERE id = ?1", [checkpoint.0, parent.0])?;
            Ok(())
        })
    }

    /// Replaces the list of changes at a checkpoint; its hash stays.
    pub(crate) fn replace_changes(
        &self,
        checkpoint: CheckpointId,
        changes: &[(Gfn, ContentRef)],
    ) -> Result<()> {
        self.write("replacing a list of changes", Durability::Full, |transaction| {
            transaction.execute("DELETE FROM page_version WHERE checkpoint = ?1", [checkpoint.0])?;
            page_version::insert(transaction, checkpoint, changes)
        })
    }

    /// Replaces the full map at a checkpoint.
    pub(crate) fn replace_keyframe(&self, checkpoint: CheckpointId, keyframe: &Keyframe) -> Result<()> {
        self.write("replacing a full map", Durability::Full, |transaction| {
            transaction.execute("DELETE FROM keyframe WHERE checkpoint = ?1", [checkpoint.0])?;
            page_version::insert_keyframe(transaction, checkpoint, keyframe)
        })
    }

    /// At least this many bytes of a pack belong to checkpoints.
    pub(crate) fn raise_pack(&self, pack: u32, committed_bytes: u64) -> Result<()> {
        self.write("noting how long a pack is", Durability::Full, |transaction| {
            transaction.execute(
                "INSERT INTO pack (id, committed_bytes) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE
                 SET committed_bytes = max(committed_bytes, excluded.committed_bytes)",
                params![pack, committed_bytes],
            )?;
            Ok(())
        })
    }
}
