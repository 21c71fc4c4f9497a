use rusqlite::{Transaction, params};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::content::{CONTENT_FLOOR, NewFrame, PACK_FLOOR, prefix};
use super::setting;
use crate::content::ContentId;
use crate::error::Result;
use crate::key::Hash;

/// A frame of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameRow {
    pub(crate) id: i64,
    pub(crate) pack: u32,
    pub(crate) offset: u64,
    pub(crate) stored_bytes: u32,
    pub(crate) pages: u32,
}

/// The new places of the live contents of an old pack.
#[derive(Default)]
pub(crate) struct Moved {
    /// The new pack and its length; none if the old one had no live contents.
    pub(crate) pack: Option<(u32, u64)>,
    /// Frames copied unchanged, with their offsets in the new pack.
    pub(crate) frames: Vec<(i64, u64)>,
    /// New frames,
    pub(crate) new_frames: Vec<NewFrame>,
    /// and the contents in them: which of the new frames, and the place in it.
    pub(crate) contents: Vec<(ContentId, usize, u32)>,
}

impl Catalogue {
    /// Every frame, by number.
    pub(crate) fn frames(&self) -> Result<Vec<FrameRow>> {
        self.read("reading frames", |reader| {
            let mut statement =
                reader.prepare("SELECT id, pack, offset, stored_bytes, pages FROM frame ORDER BY id")?;
            let rows = statement.query_map([], |row| {
                Ok(FrameRow {
                    id: row.get(0)?,
                    pack: row.get(1)?,
                    offset: row.get(2)?,
                    stored_bytes: row.get(3)?,
                    pages: row.get(4)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Calls `each` with every content, ascending: its number, its frame and its place there.
    pub(crate) fn each_content_row(&self, mut each: impl FnMut(ContentId, i64, u32)) -> Result<()> {
        self.read("reading contents", |reader| {
            let mut statement = reader.prepare("SELECT id, frame, slot FROM content ORDER BY id")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                each(ContentId(row.get(0)?), row.get(1)?, row.get(2)?);
            }
            Ok(())
        })
    }

    /// Contents by number, both ends included: frame, number, place and hash of each.
    pub(crate) fn contents_between(
        &self,
        first: ContentId,
        last: ContentId,
    ) -> Result<Vec<(i64, ContentId, u32, Hash)>> {
        self.read("reading contents", |reader| {
            let mut statement = reader
                .prepare_cached("SELECT frame, id, slot, hash FROM content WHERE id BETWEEN ?1 AND ?2")?;
            let rows = statement.query_map(params![first.0, last.0], |row| {
                Ok((row.get(0)?, ContentId(row.get(1)?), row.get(2)?, row.get(3)?))
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Removes contents that nothing refers to. `next` is the number that the next new content gets.
    pub(crate) fn remove_contents(&self, contents: &[ContentId], next: u64) -> Result<()> {
        self.write("removing contents", Durability::Process, |transaction| {
            let mut find = transaction.prepare_cached("SELECT hash FROM content WHERE id = ?1")?;
            let mut unindex =
                transaction.prepare_cached("DELETE FROM content_index WHERE prefix = ?1 AND content = ?2")?;
            let mut remove = transaction.prepare_cached("DELETE FROM content WHERE id = ?1")?;
            for id in contents {
                let hash: Hash = find.query_row([id.0], |row| row.get(0))?;
                unindex.execute(params![prefix(&hash).cast_signed(), id.0])?;
                remove.execute([id.0])?;
            }
            raise(transaction, CONTENT_FLOOR, next)
        })
    }

    /// Replaces an old pack by the one with its live contents, in one durable transaction.
    pub(crate) fn replace_pack(&self, old: u32, moved: &Moved, next_pack: u32) -> Result<()> {
        self.write_long("replacing a pack", Durability::Full, |transaction| {
            if let Some((number, bytes)) = moved.pack {
                transaction.execute(
                    "INSERT INTO pack (id, committed_bytes) VALUES (?1, ?2)",
                    params![number, bytes],
                )?;
                let mut update =
                    transaction.prepare_cached("UPDATE frame SET pack = ?2, offset = ?3 WHERE id = ?1")?;
                for (id, offset) in &moved.frames {
                    update.execute(params![id, number, offset])?;
                }
                let mut ids = Vec::with_capacity(moved.new_frames.len());
                let mut add = transaction.prepare_cached(
                    "INSERT INTO frame (pack, offset, stored_bytes, pages) VALUES (?1, ?2, ?3, ?4)",
                )?;
                for frame in &moved.new_frames {
                    add.execute(params![frame.pack, frame.offset, frame.stored_bytes, frame.pages])?;
                    ids.push(transaction.last_insert_rowid());
                }
                let mut update =
                    transaction.prepare_cached("UPDATE content SET frame = ?2, slot = ?3 WHERE id = ?1")?;
                for (id, frame, slot) in &moved.contents {
                    update.execute(params![id.0, ids[*frame], slot])?;
                }
            }
            // The rest is garbage: live contents were moved above.
            transaction.execute("DELETE FROM frame WHERE pack = ?1", [old])?;
            transaction.execute("DELETE FROM pack WHERE id = ?1", [old])?;
            raise(transaction, PACK_FLOOR, next_pack.into())
        })
    }
}

/// Raises a floor: numbers below it are not used again.
fn raise(transaction: &Transaction<'_>, name: &str, floor: u64) -> Result<(), Abort> {
    let known: Option<Vec<u8>> = transaction
        .prepare_cached("SELECT value FROM setting WHERE name = ?1")?
        .query_map([name], |row| row.get(0))?
        .next()
        .transpose()?;
    let known = known.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    setting::set(transaction, name, &floor.max(known).to_le_bytes())?;
    Ok(())
}
