use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use retrovisor_guest::{PAGE_SIZE, Page};

use crate::content::ContentId;
use crate::mutex::lock;

/// Contents kept in memory by default: 256 MiB.
const PAGES_KEPT: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();

/// Contents that were captured, written back or read recently, by number. It is filled at capture, so that a rollback
/// to a recent checkpoint reads, decompresses and hashes nothing: what is in here was checked when it was added. What
/// several checkpoints share is kept once.
pub(crate) struct PageCache(Mutex<LruCache<ContentId, Arc<Page>>>);

impl PageCache {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(PAGES_KEPT)))
    }

    /// Keeps this many bytes of pages at most (at least one page). Drops the oldest ones that are too many.
    pub(crate) fn set_bytes_max(&self, bytes_max: u64) {
        let pages = usize::try_from(bytes_max).unwrap_or(usize::MAX) / PAGE_SIZE;
        lock(&self.0).resize(NonZeroUsize::new(pages).unwrap_or(NonZeroUsize::MIN));
    }

    /// Bytes of pages kept now, and at most.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let pages = lock(&self.0);
        ((pages.len() * PAGE_SIZE) as u64, pages.cap().get().saturating_mul(PAGE_SIZE) as u64)
    }

    pub(crate) fn get(&self, id: ContentId) -> Option<Arc<Page>> {
        lock(&self.0).get(&id).map(Arc::clone)
    }

    /// The pages of `ids` that are kept; what is not, goes to `missing`.
    pub(crate) fn get_all(
        &self,
        ids: &[ContentId],
        missing: &mut Vec<ContentId>,
    ) -> Vec<(ContentId, Arc<Page>)> {
        let mut pages = lock(&self.0);
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            match pages.get(id) {
                Some(page) => found.push((*id, Arc::clone(page))),
                None => missing.push(*id),
            }
        }
        found
    }

    /// Those of `ids` that are not kept.
    pub(crate) fn missing(&self, ids: impl Iterator<Item = ContentId>) -> Vec<ContentId> {
        let pages = lock(&self.0);
        ids.filter(|id| !pages.contains(id)).collect()
    }

    pub(crate) fn put(&self, id: ContentId, page: Arc<Page>) {
        lock(&self.0).put(id, page);
    }

    /// Keeps copies of pages that are not kept yet, and marks those that are as used.
    pub(crate) fn fill<'p>(&self, new: impl Iterator<Item = (ContentId, &'p Page)>) {
        let mut pages = lock(&self.0);
        for (id, page) in new {
            if pages.get(&id).is_some() {
                continue;
            }
            // The memory of the page that is evicted is reused: it is mapped already.
            let full = pages.len() == pages.cap().get();
            let mut oldest = if full { pages.pop_lru().map(|(_, page)| page) } else { None };
            let kept = match oldest.take() {
                Some(mut room) => match Arc::get_mut(&mut room) {
                    Some(bytes) => {
                        bytes.copy_from_slice(page);
                        room
                    }
                    None => Arc::new(*page),
                },
                None => Arc::new(*page),
            };
            pages.put(id, kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_the_budget_and_the_newest_stay() {
        let cache = PageCache::new();
        cache.set_bytes_max(3 * PAGE_SIZE as u64);
        let page = |byte| [byte; PAGE_SIZE];
        let pages: Vec<Page> = (0..5).map(page).collect();
        let held = {
            cache.fill(pages[..3].iter().enumerate().map(|(at, page)| (ContentId(at as u64), page)));
            cache.get(ContentId(0)).unwrap()
        };
        cache.fill(pages[3..].iter().enumerate().map(|(at, page)| (ContentId(at as u64 + 3), page)));
        assert_eq!(cache.bytes(), (3 * PAGE_SIZE as u64, 3 * PAGE_SIZE as u64));
        let mut missing = Vec::new();
        let ids: Vec<_> = (0..5).map(ContentId).collect();
        let found = cache.get_all(&ids, &mut missing);
        assert_eq!(missing, [ContentId(1), ContentId(2)]);
        for (id, kept) in found {
            assert_eq!(*kept, page(u8::try_from(id.0).unwrap()));
        }
        // A page that is in use is not overwritten.
        cache.fill(pages.iter().enumerate().map(|(at, page)| (ContentId(at as u64 + 10), page)));
        assert_eq!(*held, page(0));
    }
}
