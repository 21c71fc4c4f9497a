use retrovisor_guest::{Gfn, MemoryError, MemoryLayout, MemoryView, PAGE_SIZE, Page, PageSet};

/// The contract of [`retrovisor_guest::MemoryIo::take_dirty`] as a model: the known bytes of each frame.
///
/// A frame is known from the moment it is read or written by the driver, until it is reported. Whatever a guest does,
/// no known frame may be [wrong](Self::wrong) right after a call that succeeded.
pub struct KnownFrames {
    layout: MemoryLayout,
    /// By index.
    pages: Vec<Option<Box<Page>>>,
}

impl KnownFrames {
    /// Nothing is known.
    #[must_use]
    pub fn new(layout: &MemoryLayout) -> Self {
        let pages = usize::try_from(layout.pages()).unwrap_or(0);
        Self { layout: layout.clone(), pages: vec![None; pages] }
    }

    /// Reads a frame and records its bytes.
    pub fn read(&mut self, view: &dyn MemoryView, gfn: Gfn) -> Result<(), MemoryError> {
        let mut page = [0; PAGE_SIZE];
        view.read_page(gfn, &mut page)?;
        self.wrote(gfn, &page);
        Ok(())
    }

    /// The driver wrote a frame.
    pub fn wrote(&mut self, gfn: Gfn, page: &Page) {
        if let Some(known) = self.place(gfn) {
            *known = Some(Box::new(*page));
        }
    }

    /// A call succeeded and reported these frames.
    pub fn reported(&mut self, frames: &PageSet) {
        for gfn in frames.iter() {
            if let Some(known) = self.place(gfn) {
                *known = None;
            }
        }
    }

    /// The known frames that have other bytes. `view` must not record what it reads.
    pub fn wrong(&self, view: &dyn MemoryView) -> Result<Vec<Gfn>, MemoryError> {
        let mut wrong = Vec::new();
        let mut found = [0; PAGE_SIZE];
        for (gfn, known) in self.layout.gfns().zip(&self.pages) {
            let Some(known) = known else { continue };
            view.read_page(gfn, &mut found)?;
            if found != **known {
                wrong.push(gfn);
            }
        }
        Ok(wrong)
    }

    fn place(&mut self, gfn: Gfn) -> Option<&mut Option<Box<Page>>> {
        let index = usize::try_from(self.layout.index(gfn)?).ok()?;
        self.pages.get_mut(index)
    }
}
