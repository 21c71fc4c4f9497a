use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use retrovisor_guest::Page;

use crate::catalogue::lock;
use crate::content::ContentId;

/// Contents kept in memory: 256 MiB.
const PAGES_KEPT: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();

/// Contents that were read or written lately. Filled on write, so that who reads the newest checkpoint reads nothing
/// from the disk.
pub(crate) struct PageCache(Mutex<LruCache<ContentId, Arc<Page>>>);

impl PageCache {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(PAGES_KEPT)))
    }

    pub(crate) fn get(&self, id: ContentId) -> Option<Arc<Page>> {
        lock(&self.0).get(&id).map(Arc::clone)
    }

    pub(crate) fn put(&self, id: ContentId, page: Arc<Page>) {
        lock(&self.0).put(id, page);
    }

    pub(crate) fn put_all(&self, pages: impl Iterator<Item = (ContentId, Arc<Page>)>) {
        let mut cache = lock(&self.0);
        for (id, page) in pages {
            cache.put(id, page);
        }
    }
}
