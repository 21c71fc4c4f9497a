use std::time::Instant;

use retrovisor_guest::{Gfn, MemoryError, MemoryLayout, MemoryView, Page, PageToken, is_zero};
use retrovisor_introspect::Introspector;

use crate::dump::Dump;

/// A memory whose frames have page tokens.
struct Named<'v> {
    view: &'v dyn MemoryView,
    pages: Vec<Page>,
    zero: Vec<bool>,
    /// Frames whose page token changes from one checkpoint to the next.
    generation: u64,
    dirty_every: u64,
}

impl MemoryView for Named<'_> {
    fn layout(&self) -> &MemoryLayout {
        self.view.layout()
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        *into = self.pages[gfn.0 as usize];
        Ok(())
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        let generation = if gfn.0.is_multiple_of(self.dirty_every) { self.generation } else { 0 };
        Some(PageToken(gfn.0 | generation << 40))
    }
    fn known_zero(&self, gfn: Gfn) -> bool {
        self.zero[gfn.0 as usize]
    }
}

/// A later observation reads only what changed.
pub(crate) fn unchanged_frames_are_not_read(dump: &Dump) {
    let (memory, registers) = (&dump.memory, dump.registers.as_slice());
    let mut pages = vec![[0; 4096]; memory.layout().pages() as usize];
    for (gfn, page) in memory.layout().gfns().zip(&mut pages) {
        memory.read_page(gfn, page).unwrap();
    }
    let zero = pages.iter().map(is_zero).collect();
    let mut view = Named { view: memory, pages, zero, generation: 0, dirty_every: 131 };
    let mut introspector = Introspector::new();
    let mut times = Vec::new();
    for generation in 0..8 {
        view.generation = generation;
        let start = Instant::now();
        let observation = introspector.observe(&view, registers);
        times.push(start.elapsed());
        if generation > 0 {
            assert!(observation.memory.pages_read < 1200, "{:?}", observation.memory);
        }
    }
    eprintln!("observations of a memory with names: {times:?}");
}
