use rusqlite::{Connection, Transaction, params};

use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::setting;
use crate::content::{ContentId, FIRST_CONTENT};
use crate::error::Result;
use crate::key::Hash;

/// The setting with the number of the content up to which the index of hashes is complete.
pub(super) const INDEXED: &str = "indexed_content";
/// The settings that prevent numbers from being used twice after the highest ones were removed.
pub(super) const CONTENT_FLOOR: &str = "content_floor";
pub(super) const PACK_FLOOR: &str = "pack_floor";

/// A frame that was appended to a pack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewFrame {
    pub(crate) pack: u32,
    pub(crate) offset: u64,
    pub(crate) stored_bytes: u32,
    pub(crate) pages: u32,
}

/// Contents not seen before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewContent {
    pub(crate) id: ContentId,
    pub(crate) hash: Hash,
    /// The index of its frame among those written with it.
    pub(crate) frame: usize,
    /// Its place in the frame, in pages.
    pub(crate) slot: u32,
}

/// The place of a content, and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentPlace {
    pub(crate) id: ContentId,
    pub(crate) hash: Hash,
    pub(crate) pack: u32,
    pub(crate) offset: u64,
    pub(crate) stored_bytes: u32,
    pub(crate) pages: u32,
    pub(crate) slot: u32,
}

const PLACE: &str = "SELECT c.id, c.hash, f.pack, f.offset, f.stored_bytes, f.pages, c.slot
    FROM content c JOIN frame f ON f.id = c.frame";

impl Catalogue {
    /// The places of contents, in the order of `ids`, which is ascending. Missing ones are left out.
    pub(crate) fn places(&self, ids: &[ContentId]) -> Result<Vec<ContentPlace>> {
        self.read("looking up contents", |reader| Ok(places(reader, ids)?))
    }

    /// Calls `each` with every content of ids from `after` (exclusive), ascending, at most `limit` of them.
    pub(crate) fn places_after(&self, after: ContentId, limit: usize) -> Result<Vec<ContentPlace>> {
        self.read("reading contents", |reader| {
            let mut statement =
                reader.prepare_cached(&format!("{PLACE} WHERE c.id > ?1 ORDER BY c.id LIMIT ?2"))?;
            let rows = statement.query_map(params![after.0, limit], place)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The ids of all contents whose frame is missing.
    pub(crate) fn contents_without_frame(&self) -> Result<Vec<ContentId>> {
        self.read("looking for contents without a frame", |reader| {
            let mut statement = reader.prepare(
                "SELECT id FROM content c WHERE NOT EXISTS (SELECT 1 FROM frame f WHERE f.id = c.frame)",
            )?;
            let rows = statement.query_map([], |row| Ok(ContentId(row.get(0)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Number of contents.
    pub(crate) fn content_count(&self) -> Result<u64> {
        self.read("counting contents", |reader| {
            Ok(reader.query_row("SELECT count(*) FROM content", [], |row| row.get(0))?)
        })
    }

    /// The next content's number: above all that were ever used.
    pub(crate) fn next_content(&self) -> Result<u64> {
        let floor = self.floor(CONTENT_FLOOR)?.max(FIRST_CONTENT);
        self.read("reading the newest content", |reader| {
            let newest: Option<u64> =
                reader.query_row("SELECT max(id) FROM content", [], |row| row.get(0))?;
            Ok(newest.map_or(floor, |id| floor.max(id + 1)))
        })
    }

    /// The lowest number that a new pack may have.
    pub(crate) fn next_pack(&self) -> Result<u32> {
        Ok(u32::try_from(self.floor(PACK_FLOOR)?).unwrap_or(u32::MAX).max(1))
    }

    /// Up to which content the index of hashes is complete.
    pub(crate) fn indexed_upto(&self) -> Result<u64> {
        self.floor(INDEXED)
    }

    fn floor(&self, name: &str) -> Result<u64> {
        Ok(self.setting(name)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes))
    }

    /// The contents that the index of hashes does not have yet.
    pub(crate) fn unindexed(&self) -> Result<Vec<(ContentId, Hash)>> {
        let indexed = self.floor(INDEXED)?;
        self.read("reading contents that are not indexed", |reader| {
            let mut statement = reader.prepare("SELECT id, hash FROM content WHERE id > ?1")?;
            let rows = statement.query_map([indexed], |row| Ok((ContentId(row.get(0)?), row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Adds contents to the index of hashes, which then is complete up to `upto`.
    pub(crate) fn index_contents(&self, contents: &mut [(u64, ContentId)], upto: ContentId) -> Result<()> {
        // In the order of the index, so that every page of it is written once.
        contents.sort_unstable();
        self.write("indexing contents", Durability::Process, |transaction| {
            let mut insert = transaction
                .prepare_cached("INSERT OR IGNORE INTO content_index (prefix, content) VALUES (?1, ?2)")?;
            for (prefix, id) in contents.iter() {
                insert.execute(params![prefix.cast_signed(), id.0])?;
            }
            setting::set(transaction, INDEXED, &upto.0.to_le_bytes())?;
            Ok(())
        })
    }

    /// For each hash prefix the indexed contents that have it, through `each`: position in `prefixes`, id, hash.
    pub(crate) fn find_contents(
        &self,
        prefixes: &[u64],
        mut each: impl FnMut(usize, ContentId, Hash),
    ) -> Result<()> {
        self.read_warm("looking for known contents", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT c.id, c.hash FROM content_index i JOIN content c ON c.id = i.content WHERE i.prefix = ?1",
            )?;
            for (at, prefix) in prefixes.iter().enumerate() {
                let mut rows = statement.query([prefix.cast_signed()])?;
                while let Some(row) = rows.next()? {
                    each(at, ContentId(row.get(0)?), row.get(1)?);
                }
            }
            Ok(())
        })
    }
}

/// The part of a hash that is in the index.
pub(crate) fn prefix(hash: &Hash) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(first)
}

/// Adds frames and contents.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    frames: &[NewFrame],
    contents: &[NewContent],
) -> Result<(), Abort> {
    let mut ids = Vec::with_capacity(frames.len());
    let mut add = transaction
        .prepare_cached("INSERT INTO frame (pack, offset, stored_bytes, pages) VALUES (?1, ?2, ?3, ?4)")?;
    for frame in frames {
        add.execute(params![frame.pack, frame.offset, frame.stored_bytes, frame.pages])?;
        ids.push(transaction.last_insert_rowid());
    }
    let mut add =
        transaction.prepare_cached("INSERT INTO content (id, hash, frame, slot) VALUES (?1, ?2, ?3, ?4)")?;
    for content in contents {
        add.execute(params![content.id.0, content.hash, ids[content.frame], content.slot])?;
    }
    Ok(())
}

/// Looks up in runs: ids that are close together are read by one scan.
fn places(reader: &Connection, ids: &[ContentId]) -> rusqlite::Result<Vec<ContentPlace>> {
    /// Rows that a scan may skip before a new look-up is cheaper.
    const GAP_MAX: u64 = 8;
    let mut found = Vec::with_capacity(ids.len());
    let mut scan = reader.prepare_cached(&format!("{PLACE} WHERE c.id BETWEEN ?1 AND ?2 ORDER BY c.id"))?;
    for run in ids.chunk_by(|a, b| b.0.saturating_sub(a.0) <= GAP_MAX) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let mut wanted = run.iter().peekable();
        let mut rows = scan.query(params![first.0, last.0])?;
        while let Some(row) = rows.next()? {
            let id = ContentId(row.get(0)?);
            while wanted.next_if(|next| **next < id).is_some() {}
            if wanted.next_if(|next| **next == id).is_some() {
                found.push(place(row)?);
            }
        }
    }
    Ok(found)
}

fn place(row: &rusqlite::Row<'_>) -> rusqlite::Result<ContentPlace> {
    Ok(ContentPlace {
        id: ContentId(row.get(0)?),
        hash: row.get(1)?,
        pack: row.get(2)?,
        offset: row.get(3)?,
        stored_bytes: row.get(4)?,
        pages: row.get(5)?,
        slot: row.get(6)?,
    })
}
