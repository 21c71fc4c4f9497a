use std::sync::atomic::{AtomicU64, Ordering};

use retrovisor_guest::PAGE_SHIFT;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// The pages of a range of memory that were written since the last query: one bit for each page, and above it one bit
/// for each word of those, so that the cost of a query depends on the number of written pages.
#[derive(Debug, Default)]
pub(crate) struct DirtyLog {
    count: usize,
    pages: Vec<AtomicU64>,
    words: Vec<AtomicU64>,
}

impl DirtyLog {
    /// Passes every word with a page in it to `found`, by number, and clears it. A write meanwhile is in this result or
    /// in the next.
    /// now or the next time.
    pub(crate) fn take(&self, mut found: impl FnMut(usize, u64)) {
        for (at, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut rest = word.swap(0, Ordering::SeqCst);
            while rest != 0 {
                let number = at * 64 + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let bits = self.pages.get(number).map_or(0, |page| page.swap(0, Ordering::SeqCst));
                if bits != 0 {
                    found(number, bits);
                }
            }
        }
    }
}

impl NewBitmap for DirtyLog {
    fn with_len(bytes: usize) -> Self {
        let zeros = |bits: usize| (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let count = bytes.div_ceil(1 << PAGE_SHIFT);
        let pages = zeros(count);
        Self { count, words: zeros(pages.len()), pages }
    }
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        let Some(last) = bytes.checked_sub(1).and_then(|more| offset.checked_add(more)) else { return };
        for page in offset >> PAGE_SHIFT..self.count.min((last >> PAGE_SHIFT) + 1) {
            let Some(word) = self.pages.get(page / 64) else { return };
            // Always, also when the bit is set: this orders the write before the bit is taken.
            word.fetch_or(1 << (page % 64), Ordering::SeqCst);
            // After the page's bit: a reader that sees this one finds the other.
            if let Some(word) = self.words.get(page / 64 / 64) {
                word.fetch_or(1 << (page / 64 % 64), Ordering::SeqCst);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset >> PAGE_SHIFT;
        self.pages.get(page / 64).is_some_and(|word| word.load(Ordering::SeqCst) >> (page % 64) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> Part<'_> {
        Part { log: self, offset }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyLog {
    type S = Part<'a>;
}

/// A log that begins at an address.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    log: &'a DirtyLog,
    offset: usize,
}

impl Bitmap for Part<'_> {
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        self.log.mark_dirty(self.offset.saturating_add(offset), bytes);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log.dirty_at(self.offset.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { log: self.log, offset: self.offset.saturating_add(offset) }
    }
}

impl WithBitmapSlice<'_> for Part<'_> {
    type S = Self;
}

impl BitmapSlice for Part<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(log: &DirtyLog) -> Vec<usize> {
        let mut pages = Vec::new();
        log.take(|word, bits| {
            pages.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| word * 64 + bit));
        });
        pages
    }

    #[test]
    fn what_is_marked_is_taken_once() {
        let log = DirtyLog::with_len(10_000 << PAGE_SHIFT);
        log.mark_dirty(4095, 2);
        log.slice_at(4096 * 9000).slice_at(4096).mark_dirty(1, 1);
        log.mark_dirty(5 << PAGE_SHIFT, 0);
        log.mark_dirty(usize::MAX, 7);
        log.mark_dirty(20_000 << PAGE_SHIFT, 7);
        log.mark_dirty(9999 << PAGE_SHIFT, 1 << 30);
        assert!(log.dirty_at(0) && !log.dirty_at(2 << PAGE_SHIFT));
        assert_eq!(taken(&log), [0, 1, 9001, 9999]);
        assert!(taken(&log).is_empty());
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let log = DirtyLog::with_len(1000 << PAGE_SHIFT);
        let written: Vec<AtomicU64> = (0..1000).map(|_| AtomicU64::new(0)).collect();
        let mut seen = vec![0; 1000];
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 1..=200 {
                    for (page, word) in written.iter().enumerate() {
                        word.store(round, Ordering::Relaxed);
                        log.mark_dirty(page << PAGE_SHIFT, 8);
                    }
                }
            });
            loop {
                let over = writer.is_finished();
                for page in taken(&log) {
                    seen[page] = written[page].load(Ordering::Relaxed);
                }
                if over {
                    break;
                }
            }
        });
        assert!(seen.iter().all(|round| *round == 200), "a page's last write was not reported");
    }
}
