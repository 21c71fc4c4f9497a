use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::bounded;
use retrovisor_guest::Page;

use super::opening::Store;
use crate::catalogue::ContentPlace;
use crate::content::ContentId;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::pack::Frame;
use crate::reads::Reads;

/// Threads that decompress, at most.
const THREADS_MAX: usize = 4;
/// Fewest contents worth a thread.
const PART_MIN: usize = 32;
/// Contents that a thread reads before it hands them over: 1 MiB.
const PART_MAX: usize = 256;
/// Times that contents are looked up again when they were moved.
const MOVES_MAX: usize = 4;
/// Contents looked up at a time.
const LOOKUP: usize = 1 << 14;

impl Store {
    /// One content, from memory or from its pack; checked.
    pub(crate) fn content(&self, id: ContentId) -> Result<Arc<Page>> {
        if let Some(page) = self.cache.get(id) {
            return Ok(page);
        }
        let place = self.catalogue().places(&[id])?.pop().ok_or_else(|| missing(id))?;
        let frame = self.packs.frame(place.pack, place.offset, place.stored_bytes, place.pages);
        let page = match frame.and_then(|frame| self.check(&place, &frame)) {
            Ok(page) => page,
            Err(error) => self.read_moved(&[place], error)?.swap_remove(0).1,
        };
        self.cache.put(id, Arc::clone(&page));
        Ok(page)
    }

    /// Reads contents again that could not be read at their `places`: a compaction may have moved them in between, and
    /// removed the pack. `error` is returned if none of them was moved.
    pub(crate) fn read_moved(
        &self,
        places: &[ContentPlace],
        mut error: Error,
    ) -> Result<Vec<(ContentId, Arc<Page>)>> {
        let mut known = places.to_vec();
        let ids: Vec<ContentId> = known.iter().map(|place| place.id).collect();
        for _ in 0..MOVES_MAX {
            if !matches!(error, Error::Damaged(_)) {
                return Err(error);
            }
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            let mut now = self.catalogue().places(&sorted)?;
            now.sort_unstable_by_key(|place| ids.iter().position(|id| *id == place.id));
            if now == known || now.len() != ids.len() {
                return Err(error);
            }
            let read = now.iter().map(|place| {
                let frame = self.packs.frame(place.pack, place.offset, place.stored_bytes, place.pages)?;
                Ok((place.id, self.check(place, &frame)?))
            });
            match read.collect::<Result<Vec<_>>>() {
                Ok(pages) => return Ok(pages),
                Err(again) => error = again,
            }
            known = now;
        }
        Err(error)
    }

    /// Contents by name, of which there may be several of the same.
    pub(crate) fn contents(
        &self,
        ids: impl Iterator<Item = ContentId>,
    ) -> Result<HashMap<ContentId, Arc<Page>>> {
        let mut wanted: Vec<_> = ids.collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut pages = HashMap::with_capacity(wanted.len());
        self.each_content(&wanted, |id, page| {
            pages.insert(id, Arc::clone(page));
            Ok(())
        })?;
        Ok(pages)
    }

    /// Calls `each` with every one of `ids`, which is ascending and names each once, in any order. What is not in
    /// memory is looked up, read, decompressed and checked by several threads, part by part, if there is enough of it.
    pub(crate) fn each_content(
        &self,
        ids: &[ContentId],
        mut each: impl FnMut(ContentId, &Arc<Page>) -> Result<()>,
    ) -> Result<()> {
        for part in ids.chunks(LOOKUP) {
            let mut cold = Vec::new();
            for (id, page) in self.cache.get_all(part, &mut cold) {
                each(id, &page)?;
            }
            self.each_cold(&cold, &mut each)?;
        }
        Ok(())
    }

    /// The same, from the packs.
    fn each_cold(
        &self,
        ids: &[ContentId],
        mut each: impl FnMut(ContentId, &Arc<Page>) -> Result<()>,
    ) -> Result<()> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX);
        let threads = (ids.len() / PART_MIN).clamp(1, cores);
        let parts: Vec<&[ContentId]> = ids.chunks(ids.len().div_ceil(threads).clamp(1, PART_MAX)).collect();
        if threads == 1 {
            for part in parts {
                for (id, page) in self.cold(part)? {
                    each(id, &page)?;
                }
            }
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (sender, receiver) = bounded(threads);
            for _ in 0..threads {
                let (sender, next, parts) = (sender.clone(), &next, &parts);
                scope.spawn(move || {
                    while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // The receiver is gone once it has had an error.
                        if sender.send(self.cold(part)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for pages in receiver {
                for (id, page) in pages? {
                    each(id, &page)?;
                }
            }
            Ok(())
        })
    }

    /// Contents from their packs, frame by frame in the order of the pack.
    fn cold(&self, ids: &[ContentId]) -> Result<Vec<(ContentId, Arc<Page>)>> {
        let mut places = self.catalogue().places(ids)?;
        if places.len() != ids.len() {
            let gone = ids.iter().find(|id| places.binary_search_by_key(*id, |place| place.id).is_err());
            return Err(missing(*gone.unwrap_or(&ContentId(0))));
        }
        places.sort_unstable_by_key(|place| (place.pack, place.offset));
        let mut pages = Vec::with_capacity(ids.len());
        for group in places.chunk_by(|a, b| (a.pack, a.offset) == (b.pack, b.offset)) {
            self.reads.add(Reads { frames: 1, ..Reads::default() });
            pages.extend(self.group(group)?);
        }
        Ok(pages)
    }

    /// The contents of one frame, past the cache of frames: whole frames are wanted here.
    fn group(&self, group: &[ContentPlace]) -> Result<Vec<(ContentId, Arc<Page>)>> {
        let Some(first) = group.first() else { return Ok(Vec::new()) };
        let named = |error| match error {
            Error::Damaged(mut damage) => {
                damage.content = Some(first.id.0);
                Error::Damaged(damage)
            }
            other => other,
        };
        self.packs
            .read_frame(first.pack, first.offset, first.stored_bytes, first.pages)
            .map_err(named)
            .and_then(|frame| group.iter().map(|place| Ok((place.id, self.check(place, &frame)?))).collect())
            .or_else(|error| self.read_moved(group, error))
    }

    /// A content of a frame, if it has the right hash.
    pub(crate) fn check(&self, place: &ContentPlace, frame: &Frame) -> Result<Arc<Page>> {
        let damaged = |what: &str| {
            Error::Damaged(Box::new(Damage {
                what: what.to_owned(),
                content: Some(place.id.0),
                pack: Some(place.pack),
                offset: Some(place.offset),
                ..Damage::default()
            }))
        };
        let page = frame.page(place.slot).ok_or_else(|| damaged("the frame has no such page"))?;
        if self.key.page(page) == place.hash {
            Ok(Arc::new(*page))
        } else {
            Err(damaged("the page is not what was written"))
        }
    }
}

/// The catalogue has no such content.
pub(crate) fn missing(id: ContentId) -> Error {
    Error::Damaged(Box::new(Damage {
        what: format!("content {} is not in the catalogue", id.0),
        content: Some(id.0),
        ..Damage::default()
    }))
}
