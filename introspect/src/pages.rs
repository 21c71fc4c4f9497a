use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use retrovisor_guest::{Gfn, Gpa, MemoryError, MemoryView, PAGE_SIZE, Page, PageToken, ZERO_PAGE};

use crate::hash::IntegerMap;

/// The frames of a view that one observation touches, each read once.
///
/// With a [`FrameCache`], frames with a page token that an earlier observation read are not read again.
pub(crate) struct Pages<'v> {
    view: &'v dyn MemoryView,
    cache: Option<&'v RefCell<FrameCache>>,
    frames: RefCell<IntegerMap<u64, Option<Arc<Page>>>>,
    read: Cell<u64>,
    unreadable: Cell<u64>,
}

/// Frames kept between observations, by page token.
pub(crate) type FrameCache = lru::LruCache<PageToken, Arc<Page>>;

impl<'v> Pages<'v> {
    /// Bound on the frames that are kept (64 MiB), whatever the guest does.
    const FRAMES_MAX: usize = 16_384;

    pub(crate) fn new(view: &'v dyn MemoryView) -> Self {
        Self { view, cache: None, frames: RefCell::default(), read: Cell::new(0), unreadable: Cell::new(0) }
    }

    pub(crate) fn with_cache(view: &'v dyn MemoryView, cache: &'v RefCell<FrameCache>) -> Self {
        Self { cache: Some(cache), ..Self::new(view) }
    }

    pub(crate) fn view(&self) -> &'v dyn MemoryView {
        self.view
    }

    /// Frames read from the view.
    pub(crate) fn read_count(&self) -> u64 {
        self.read.get()
    }

    /// Frames of RAM that could not be read from the view.
    pub(crate) fn unreadable_count(&self) -> u64 {
        self.unreadable.get()
    }

    /// The frame, or `None` when it is not RAM or cannot be read.
    pub(crate) fn frame(&self, gfn: Gfn) -> Option<Arc<Page>> {
        if let Some(known) = self.frames.borrow().get(&gfn.0) {
            return known.clone();
        }
        let token = self.cache.and_then(|cache| Some((cache, self.view.token(gfn)?)));
        let kept = token.and_then(|(cache, token)| cache.borrow_mut().get(&token).cloned());
        let page = kept.or_else(|| {
            let mut page = Arc::new(ZERO_PAGE);
            self.read_into(gfn, Arc::make_mut(&mut page))?;
            if let Some((cache, token)) = token {
                cache.borrow_mut().put(token, Arc::clone(&page));
            }
            Some(page)
        });
        let mut frames = self.frames.borrow_mut();
        if frames.len() >= Self::FRAMES_MAX {
            frames.clear();
        }
        frames.insert(gfn.0, page.clone());
        page
    }

    /// Reads a frame without the cache: for scans, which use each frame once.
    pub(crate) fn read_into(&self, gfn: Gfn, into: &mut Page) -> Option<()> {
        self.read.set(self.read.get() + 1);
        match self.view.read_page(gfn, into) {
            Ok(()) => Some(()),
            Err(MemoryError::NotMemory { .. }) => None,
            Err(error) => {
                tracing::warn!(%gfn, %error, "a frame cannot be read: facts that need it will be missing");
                self.unreadable.set(self.unreadable.get() + 1);
                None
            }
        }
    }

    /// Reads consecutive frames without the cache. `None` when one of them cannot be read, or is known to be zeros:
    /// then each must be read on its own.
    pub(crate) fn read_run(&self, first: Gfn, into: &mut [Page]) -> Option<()> {
        let frames = (first.0..).map(Gfn).take(into.len());
        if frames.into_iter().any(|gfn| self.view.known_zero(gfn)) {
            return None;
        }
        self.view.read(first.gpa(), into.as_flattened_mut()).ok()?;
        self.read.set(self.read.get() + into.len() as u64);
        Some(())
    }

    /// Reads from an address into `into`, without the cache. `None` when a part cannot be read.
    pub(crate) fn read_bytes(&self, gpa: Gpa, into: &mut [u8]) -> Option<()> {
        self.view.read(gpa, into).ok()?;
        self.read.set(self.read.get() + (into.len() as u64).div_ceil(PAGE_SIZE as u64));
        Some(())
    }

    /// The 64-bit word at `gpa`, which must be 8-aligned.
    pub(crate) fn word(&self, gpa: Gpa) -> Option<u64> {
        let page = self.frame(gpa.gfn())?;
        let offset = gpa.offset_in_page();
        page.get(offset..offset + 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

/// Frames of a view without page tokens that were read ahead, without the cache: one read for many frames.
#[derive(Default)]
pub(crate) struct ReadAhead {
    first: u64,
    frames: Vec<Page>,
}

impl ReadAhead {
    const FRAMES_MAX: usize = 64;

    /// A frame; if it was not read ahead, up to `run` consecutive frames are read from it on.
    pub(crate) fn frame(&mut self, pages: &Pages, gfn: Gfn, run: usize) -> Option<&Page> {
        let known = gfn.0.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(at) = known.filter(|at| *at < self.frames.len()) {
            return self.frames.get(at);
        }
        self.first = gfn.0;
        self.frames.resize(run.clamp(1, Self::FRAMES_MAX), ZERO_PAGE);
        if self.frames.len() == 1 || pages.read_run(gfn, &mut self.frames).is_none() {
            self.frames.truncate(1);
            if pages.read_into(gfn, self.frames.first_mut()?).is_none() {
                self.frames.clear();
            }
        }
        self.frames.first()
    }
}

#[cfg(test)]
mod tests {
    use retrovisor_guest::MemoryLayout;

    use super::*;

    struct Tokens(MemoryLayout);

    impl MemoryView for Tokens {
        fn layout(&self) -> &MemoryLayout {
            &self.0
        }
        fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
            self.0.index(gfn).ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
            if gfn.0 == 3 {
                return Err(MemoryError::Damaged("gone".into()));
            }
            into.fill(1);
            Ok(())
        }
        fn token(&self, _gfn: Gfn) -> Option<PageToken> {
            Some(PageToken(7))
        }
    }

    #[test]
    fn equal_tokens_are_read_once_and_damage_is_counted() {
        let view = Tokens(MemoryLayout::flat(4 * 4096).unwrap());
        let cache = RefCell::new(FrameCache::new(std::num::NonZero::new(4).unwrap()));
        let pages = Pages::with_cache(&view, &cache);
        assert_eq!(pages.word(Gpa(0x1008)), Some(0x0101_0101_0101_0101));
        assert!(pages.frame(Gfn(0)).unwrap().iter().all(|byte| *byte == 1));
        assert_eq!(pages.read_count(), 1);
        let pages = Pages::new(&view);
        assert!(pages.frame(Gfn(3)).is_none() && pages.frame(Gfn(4)).is_none());
        assert_eq!(pages.unreadable_count(), 1);
        assert_eq!(pages.word(Gpa(!7)), None);
    }
}
