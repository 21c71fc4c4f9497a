use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::time::Instant;

use lru::LruCache;
use retrovisor_guest::{PAGE_SIZE, Page};

use crate::catalogue::{Catalogue, NewContent, NewContents, NewFrame, prefix};
use crate::clock::since_us;
use crate::content::{ContentId, ContentRef};
use crate::error::{Error, Result};
use crate::key::{Hash, Key};
use crate::pack::{FRAME_PAGES, PackWriter, compressor, encode_frame};
use crate::parallel;

/// Bound on the contents in memory that are not in the catalogue's index yet. They are indexed together: hashes are
/// random, so that adding each separately would rewrite a page of the index each time.
const UNINDEXED_MAX: usize = 1 << 15;
/// Bound on recently reused contents that are kept with their hashes: about 10 MiB.
const REPEATED_MAX: NonZeroUsize = NonZeroUsize::new(1 << 17).unwrap();
/// Fewest pages worth a thread of their own.
const HASH_PAGES_MIN: usize = 128;
/// Fewest frames worth a thread of their own.
const ENCODE_FRAMES_MIN: usize = 16;
/// Pages compressed at a time: bounds the memory for frames that wait to be written.
const BATCH_PAGES: usize = 4096;

/// Adds contents to a store: hashes them, looks them up, compresses new ones and appends them to a pack. There is one
/// for each store, behind a lock.
pub(crate) struct ContentWriter {
    packs: PackWriter,
    /// Committed contents that are not in the catalogue's index of hashes.
    recent: HashMap<Hash, ContentId>,
    /// Recently reused contents: one that was added twice is likely to be added again.
    repeated: LruCache<Hash, ContentId>,
    /// Damaged contents: they do not count as known, so that their bytes are stored again when they occur.
    lost: HashSet<ContentId>,
    next_content: u64,
    batch: Batch,
}

/// Contents added since the last commit.
#[derive(Default)]
struct Batch {
    known: HashMap<Hash, ContentId>,
    frames: Vec<NewFrame>,
    contents: Vec<NewContent>,
    /// New pages that do not fill a frame yet.
    tail: Vec<u8>,
    stored_bytes: u64,
    timing: WriteTiming,
}

/// Where the time went, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_field_names, reason = "the unit is last in names")]
pub(crate) struct WriteTiming {
    pub(crate) hash_us: u64,
    pub(crate) dedupe_us: u64,
    pub(crate) compress_us: u64,
    pub(crate) write_us: u64,
    pub(crate) sync_us: u64,
}

/// The amounts added since the last commit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) contents: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) timing: WriteTiming,
}

/// The added contents that are on the disk, for the catalogue to commit.
pub(crate) struct Sealed {
    pub(crate) frames: Vec<NewFrame>,
    pub(crate) contents: Vec<NewContent>,
    pub(crate) packs: Vec<(u32, u64)>,
    pub(crate) stored_bytes: u64,
    pub(crate) timing: WriteTiming,
}

impl Sealed {
    /// The rows for the catalogue.
    pub(crate) fn contents(&self) -> NewContents<'_> {
        NewContents { frames: &self.frames, contents: &self.contents, packs: &self.packs }
    }
}

impl ContentWriter {
    pub(crate) fn new(packs: PackWriter, catalogue: &Catalogue) -> Result<Self> {
        let lost: HashSet<ContentId> = catalogue.lost_contents()?.into_iter().collect();
        Ok(Self {
            packs,
            repeated: LruCache::new(REPEATED_MAX),
            recent: catalogue
                .unindexed()?
                .into_iter()
                .filter(|(id, _)| !lost.contains(id))
                .map(|(id, hash)| (hash, id))
                .collect(),
            lost,
            next_content: catalogue.next_content()?,
            batch: Batch::default(),
        })
    }

    /// Adds pages and returns the content of each. None of them may be zero: zero is a state, not a content.
    pub(crate) fn add(
        &mut self,
        key: &Key,
        catalogue: &Catalogue,
        pages: &[&Page],
    ) -> Result<Vec<ContentRef>> {
        let start = Instant::now();
        let hashes = parallel::map(pages, HASH_PAGES_MIN, |page| key.page(page));
        self.batch.timing.hash_us += since_us(start);

        let start = Instant::now();
        let (names, new) = self.name(catalogue, &hashes)?;
        self.batch.timing.dedupe_us += since_us(start);

        for part in new.chunks(BATCH_PAGES) {
            self.store(pages, &hashes, part)?;
        }
        Ok(names)
    }

    /// Finds known contents and gives new numbers to the others. Returns the content of each, and the positions of new
    /// ones.
    #[expect(clippy::type_complexity, reason = "two lists")]
    fn name(
        &mut self,
        catalogue: &Catalogue,
        hashes: &[Hash],
    ) -> Result<(Vec<ContentRef>, Vec<(usize, ContentId)>)> {
        let known = |hash| self.recent.get(hash).or_else(|| self.batch.known.get(hash)).copied();
        let mut names: Vec<Option<ContentId>> =
            hashes.iter().map(|hash| known(hash).or_else(|| self.repeated.get(hash).copied())).collect();
        let unknown: Vec<usize> = (0..names.len()).filter(|at| names[*at].is_none()).collect();
        let prefixes: Vec<u64> = unknown.iter().map(|at| prefix(&hashes[*at])).collect();
        let lost = &self.lost;
        catalogue.find_contents(&prefixes, |at, id, hash| {
            if hash == hashes[unknown[at]] && !lost.contains(&id) {
                names[unknown[at]] = Some(id);
                self.repeated.put(hash, id);
            }
        })?;
        let mut new = Vec::new();
        for at in unknown {
            if names[at].is_none() {
                // The same content may occur twice in this list.
                names[at] = Some(*self.batch.known.entry(hashes[at]).or_insert_with(|| {
                    let id = ContentId(self.next_content);
                    self.next_content += 1;
                    new.push((at, id));
                    id
                }));
            }
        }
        let names = names.into_iter().map(|name| name.map_or(ContentRef::Zero, ContentRef::Stored)).collect();
        Ok((names, new))
    }

    /// Puts new contents into frames and appends those that are full.
    fn store(&mut self, pages: &[&Page], hashes: &[Hash], new: &[(usize, ContentId)]) -> Result<()> {
        let batch = &mut self.batch;
        for (at, id) in new {
            let slot = batch.tail.len() / PAGE_SIZE;
            #[expect(clippy::cast_possible_truncation, reason = "below the pages of a frame")]
            batch.contents.push(NewContent {
                id: *id,
                hash: hashes[*at],
                frame: batch.frames.len() + slot / FRAME_PAGES,
                slot: (slot % FRAME_PAGES) as u32,
            });
            batch.tail.extend_from_slice(pages[*at]);
        }
        let full = batch.tail.len() / (FRAME_PAGES * PAGE_SIZE) * (FRAME_PAGES * PAGE_SIZE);
        let rest = batch.tail.split_off(full);
        let whole = std::mem::replace(&mut batch.tail, rest);
        self.append(&whole)
    }

    fn append(&mut self, pages: &[u8]) -> Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let raw: Vec<&[u8]> = pages.chunks(FRAME_PAGES * PAGE_SIZE).collect();
        let frames = parallel::map_with(&raw, ENCODE_FRAMES_MIN, compressor, |compressor, pages| {
            encode_frame(pages, compressor)
        })
        .map_err(|source| Error::Io {
            doing: "starting compression for",
            path: "packs".into(),
            source,
        })?;
        self.batch.timing.compress_us += since_us(start);

        let start = Instant::now();
        self.batch.stored_bytes += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        #[expect(clippy::cast_possible_truncation, reason = "few pages make a frame")]
        let frames = frames.into_iter().zip(raw).map(|(frame, raw)| (frame, (raw.len() / PAGE_SIZE) as u32));
        self.batch.frames.extend(self.packs.append(frames.collect())?);
        self.batch.timing.write_us += since_us(start);
        Ok(())
    }

    /// What was added since the last commit.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            contents: self.batch.contents.len() as u64,
            stored_bytes: self.batch.stored_bytes,
            timing: self.batch.timing,
        }
    }

    /// Waits until the data appended so far are on the disk, so that less remains for the commit.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let start = Instant::now();
        self.packs.sync()?;
        self.batch.timing.sync_us += since_us(start);
        Ok(())
    }

    /// Writes the rest and waits until everything is on the disk.
    pub(crate) fn seal(&mut self) -> Result<Sealed> {
        let tail = std::mem::take(&mut self.batch.tail);
        self.append(&tail)?;
        let start = Instant::now();
        let packs = self.packs.sync()?;
        self.batch.timing.sync_us += since_us(start);
        let batch = std::mem::take(&mut self.batch);
        Ok(Sealed {
            frames: batch.frames,
            contents: batch.contents,
            packs,
            stored_bytes: batch.stored_bytes,
            timing: batch.timing,
        })
    }

    /// The catalogue has committed: the contents can be found from now on.
    pub(crate) fn committed(&mut self, catalogue: &Catalogue, sealed: &Sealed) {
        self.packs.committed();
        self.recent.extend(sealed.contents.iter().map(|content| (content.hash, content.id)));
        if self.recent.len() > UNINDEXED_MAX {
            let mut list: Vec<_> = self.recent.iter().map(|(hash, id)| (prefix(hash), *id)).collect();
            let upto = list.iter().map(|(_, id)| *id).max().unwrap_or(ContentId(0));
            match catalogue.index_contents(&mut list, upto) {
                Ok(()) => self.recent.clear(),
                // They stay in memory, and are indexed with the next commit.
                Err(error) => tracing::warn!(%error, "contents could not be indexed"),
            }
        }
    }

    /// Replaces the set of damaged contents.
    pub(crate) fn set_lost(&mut self, lost: HashSet<ContentId>) {
        self.forget(|id| lost.contains(&id));
        self.lost = lost;
    }

    /// The number that the next new content gets.
    pub(crate) fn next_content(&self) -> u64 {
        self.next_content
    }

    /// Drops contents that were removed from the catalogue: their bytes are new when they occur again.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(ContentId) -> bool) {
        self.recent.retain(|_, id| !is_gone(*id));
        let gone: Vec<Hash> =
            self.repeated.iter().filter(|(_, id)| is_gone(**id)).map(|(hash, _)| *hash).collect();
        for hash in &gone {
            self.repeated.pop(hash);
        }
    }

    /// Where contents are written.
    pub(crate) fn packs(&mut self) -> &mut PackWriter {
        &mut self.packs
    }

    /// Discards the contents added since the last commit. Their numbers are not used again, so that no cache by number
    /// returns wrong bytes.
    pub(crate) fn abandon(&mut self) {
        self.packs.abandon();
        self.batch = Batch::default();
    }
}
