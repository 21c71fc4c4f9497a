//! Finds written frames by comparing guest memory with a copy of it, for memory that is not under write protection.

use std::sync::atomic::{AtomicU64, Ordering};

use retrovisor_guest::{
    Gfn, MemoryError, MemoryLayout, MemoryView, PAGE_SIZE, Page, PageContent, PageSet, ZERO_PAGE,
};

/// Bound on the threads that compare. One does not use all of the memory's bandwidth.
const THREADS_MAX: usize = 4;

/// A copy of guest memory as of the last scan.
///
/// A comparison does not detect bytes that change and change back between two scans. Two kinds of frames must be
/// reported in any case, or be exact in the copy:
///
/// - A frame that was read after the last scan while the guest could write it: the bytes read may differ from those of
///   both scans. It is marked, and reported by the next scan.
/// - A frame that the driver wrote: the copy gets the same bytes, so that a guest that writes the earlier bytes back is
///   detected.
pub(super) struct Comparison {
    layout: MemoryLayout,
    /// Each frame as the last scan found it, or as the driver wrote it since. Empty: the next scan reports every frame.
    copy: Vec<u8>,
    /// Frames that the next scan reports whether or not they equal the copy: a bit each, by index.
    marked: Vec<AtomicU64>,
    /// The last scan found the guest paused, and it has not run since: any frame read now equals the copy.
    is_settled: bool,
}

impl Comparison {
    /// The first scan reports every frame.
    pub(super) fn new(layout: &MemoryLayout) -> Self {
        let words = usize::try_from(layout.pages().div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            layout: layout.clone(),
            copy: Vec::new(),
            marked: std::iter::repeat_with(AtomicU64::default).take(words).collect(),
            is_settled: false,
        }
    }

    /// Must be called before the guest is resumed.
    pub(super) fn unsettle(&mut self) {
        self.is_settled = false;
    }

    /// Must be called before a frame is read on behalf of a caller.
    pub(super) fn note_read(&self, gfn: Gfn) {
        if !self.is_settled
            && let Some(index) = self.layout.index(gfn)
        {
            self.mark(index);
        }
    }

    /// Writes a frame with `write`, and the copy with it. If that fails, the next scan reports the frame.
    pub(super) fn write(
        &mut self,
        gfn: Gfn,
        content: PageContent<'_>,
        write: impl FnOnce() -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let index = self.layout.index(gfn).ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        let was_marked = self.mark(index);
        write()?;
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        // Without a copy the next scan reports the frame in any case.
        if let Some(copied) = self.copy.chunks_exact_mut(PAGE_SIZE).nth(place) {
            copied.copy_from_slice(content.bytes());
            if !was_marked {
                self.unmark(index);
            }
        }
        Ok(())
    }

    /// Adds the frames that were written since the last scan to `found`, as [`retrovisor_guest::MemoryIo::take_dirty`]
    /// requires. After an error the next scan reports every frame.
    pub(super) fn scan(
        &mut self,
        memory: &(impl MemoryView + Sync),
        is_running: bool,
        found: &mut PageSet,
    ) -> Result<(), MemoryError> {
        let scanned = self.update_copy(memory, found);
        if scanned.is_err() {
            // Some frames may be up to date in the copy without having been reported.
            self.copy.clear();
        } else {
            for (at, word) in self.marked.iter_mut().enumerate() {
                found.insert_word(at, std::mem::take(word.get_mut()));
            }
        }
        self.is_settled = scanned.is_ok() && !is_running;
        scanned
    }

    fn update_copy(
        &mut self,
        memory: &(impl MemoryView + Sync),
        found: &mut PageSet,
    ) -> Result<(), MemoryError> {
        let length = usize::try_from(self.layout.bytes()).map_err(std::io::Error::other)?;
        if self.copy.len() != length {
            self.copy.clear();
            self.copy.try_reserve_exact(length).map_err(std::io::Error::other)?;
            self.copy.resize(length, 0);
            *found = PageSet::full(&self.layout);
        }
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
        let part_pages = (length / PAGE_SIZE).div_ceil(threads).max(1);
        let layout = &self.layout;
        let parts = std::thread::scope(|scope| {
            let parts = self.copy.chunks_mut(part_pages * PAGE_SIZE).enumerate().map(|(part, copy)| {
                scope.spawn(move || update_part(memory, layout, (part * part_pages) as u64, copy))
            });
            parts.collect::<Vec<_>>().into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for part in parts {
            let indices = part.map_err(|_| std::io::Error::other("a comparing thread panicked"))??;
            for index in indices {
                found.insert_index(index);
            }
        }
        Ok(())
    }

    /// Marks a frame; returns whether it was marked before.
    fn mark(&self, index: u64) -> bool {
        let Some((word, bit)) = self.place(index) else { return false };
        word.fetch_or(bit, Ordering::Relaxed) & bit != 0
    }

    fn unmark(&self, index: u64) {
        if let Some((word, bit)) = self.place(index) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    fn place(&self, index: u64) -> Option<(&AtomicU64, u64)> {
        let word = usize::try_from(index / 64).ok().and_then(|at| self.marked.get(at))?;
        Some((word, 1 << (index % 64)))
    }
}

/// The indices of the frames from `first` on that differ from `copy`, which is brought up to date.
fn update_part(
    memory: &impl MemoryView,
    layout: &MemoryLayout,
    first: u64,
    copy: &mut [u8],
) -> Result<Vec<u64>, MemoryError> {
    let mut changed = Vec::new();
    let mut page: Page = ZERO_PAGE;
    for (index, old) in (first..).zip(copy.chunks_exact_mut(PAGE_SIZE)) {
        let Some(gfn) = layout.gfn(index) else { break };
        memory.read_page(gfn, &mut page)?;
        if *old != page {
            old.copy_from_slice(&page);
            changed.push(index);
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;
    use retrovisor_guest::{Gpa, MemorySlot};
    use retrovisor_scripted::KnownFrames;

    use super::*;
    use crate::ram::Ram;

    fn layout() -> MemoryLayout {
        let slot = |gpa, pages: u64| MemorySlot { gpa: Gpa(gpa), length_bytes: pages * 4096 };
        MemoryLayout::new(vec![slot(0, 2), slot(4 << 30, 5)]).unwrap()
    }

    /// Guest memory of which one read in a scan fails on request.
    struct Failing<'a> {
        ram: &'a Ram,
        fails: AtomicBool,
    }

    impl MemoryView for Failing<'_> {
        fn layout(&self) -> &MemoryLayout {
            self.ram.layout()
        }
        fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
            // Late, so that frames before it are up to date in the copy already.
            if gfn.0 == (4 << 18) + 3 && self.fails.load(Ordering::Relaxed) {
                return Err(MemoryError::Damaged("fails on request".into()));
            }
            self.ram.read_page(gfn, into)
        }
    }

    /// What happens to a machine, in the order in which it happens.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A vCPU or a device fills a frame with a byte; few, so that frames often get back what they had.
        GuestWrites(u64, u8),
        /// A rollback does.
        DriverWrites(u64, u8),
        Reads(u64),
        Scans,
        ScanFails,
        Pauses,
        Resumes,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (frame, byte) = (|| 0..7_u64, || 0..3_u8);
        prop_oneof![
            6 => (frame(), byte()).prop_map(|(frame, byte)| Step::GuestWrites(frame, byte)),
            4 => (frame(), byte()).prop_map(|(frame, byte)| Step::DriverWrites(frame, byte)),
            6 => frame().prop_map(Step::Reads),
            4 => Just(Step::Scans),
            1 => Just(Step::ScanFails),
            2 => Just(Step::Pauses),
            2 => Just(Step::Resumes),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_was_read_or_written_stays_so_until_the_frame_is_reported(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let layout = layout();
            let ram = Ram::anonymous(layout.clone()).unwrap();
            let mut comparison = Comparison::new(&layout);
            let mut known = KnownFrames::new(&layout);
            let is_running = Cell::new(true);
            for step in steps {
                match step {
                    Step::GuestWrites(frame, byte) if is_running.get() => {
                        let gfn = layout.gfn(frame).unwrap();
                        ram.write_page(gfn, PageContent::Data(&[byte; PAGE_SIZE])).unwrap();
                    }
                    Step::DriverWrites(frame, byte) if !is_running.get() => {
                        let (gfn, page) = (layout.gfn(frame).unwrap(), [byte; PAGE_SIZE]);
                        let content = PageContent::Data(&page);
                        comparison.write(gfn, content, || ram.write_page(gfn, content)).unwrap();
                        known.wrote(gfn, &page);
                    }
                    Step::Reads(frame) => {
                        let gfn = layout.gfn(frame).unwrap();
                        comparison.note_read(gfn);
                        known.read(&ram, gfn).unwrap();
                    }
                    Step::Scans | Step::ScanFails => {
                        let fails = AtomicBool::new(matches!(step, Step::ScanFails));
                        let mut found = PageSet::empty(&layout);
                        let view = Failing { ram: &ram, fails };
                        if comparison.scan(&view, is_running.get(), &mut found).is_ok() {
                            known.reported(&found);
                            prop_assert_eq!(known.wrong(&ram).unwrap(), []);
                        }
                    }
                    Step::Pauses => is_running.set(false),
                    Step::Resumes => {
                        comparison.unsettle();
                        is_running.set(true);
                    }
                    Step::GuestWrites(..) | Step::DriverWrites(..) => {}
                }
            }
        }
    }

    #[test]
    fn a_guest_that_undoes_a_rollback_is_noticed() {
        let layout = layout();
        let ram = Ram::anonymous(layout.clone()).unwrap();
        let mut comparison = Comparison::new(&layout);
        let scan = |comparison: &mut Comparison| {
            let mut found = PageSet::empty(&layout);
            comparison.scan(&ram, false, &mut found).unwrap();
            found.iter().collect::<Vec<_>>()
        };
        assert_eq!(scan(&mut comparison).len(), 7);
        let (before, after) = (PageContent::Zero, PageContent::Data(&[1; PAGE_SIZE]));
        ram.write_page(Gfn(1), after).unwrap();
        assert_eq!(scan(&mut comparison), [Gfn(1)]);
        comparison.write(Gfn(1), before, || ram.write_page(Gfn(1), before)).unwrap();
        comparison.unsettle();
        ram.write_page(Gfn(1), after).unwrap();
        assert_eq!(scan(&mut comparison), [Gfn(1)], "it holds again what it held before the rollback");
        assert_eq!(scan(&mut comparison), []);
    }

    #[test]
    fn every_byte_of_every_slot_is_compared() {
        let layout = layout();
        let ram = Ram::anonymous(layout.clone()).unwrap();
        let mut comparison = Comparison::new(&layout);
        let mut found = PageSet::empty(&layout);
        comparison.scan(&ram, false, &mut found).unwrap();
        assert_eq!(found, PageSet::full(&layout));
        for gfn in layout.gfns() {
            let mut page = ZERO_PAGE;
            page[PAGE_SIZE - 1] = 1;
            ram.write_page(gfn, PageContent::Data(&page)).unwrap();
            found.clear();
            comparison.scan(&ram, false, &mut found).unwrap();
            assert_eq!(found.iter().collect::<Vec<_>>(), [gfn]);
        }
    }
}
