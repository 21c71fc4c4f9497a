use std::sync::Arc;

use retrovisor_guest::{
    Gfn, Machine, MemoryLayout, MemoryView, Page, PageContent, PageSet, ZERO_PAGE, differing_lines,
};

use super::put::{Put, Ready};
use crate::content::ContentRef;
use crate::error::Result;
use crate::page_map::PageMap;
use crate::store::Store;

/// Every line of a page.
const ALL: u64 = u64::MAX;

/// Frames to be overwritten, in order of address, each with what is to stand in it: nothing has to be looked up while
/// the guest stands still, and of a page that is there for the most part only the lines that differ are written. What
/// was not ready in memory comes last, from the packs.
pub(super) struct Overwrite {
    frames: Vec<Frame>,
    cold: Put,
    covered: PageSet,
}

struct Frame {
    index: u64,
    gfn: Gfn,
    filling: Filling,
    /// The lines that differ from what stood there when the list was made.
    lines: u64,
}

enum Filling {
    Zero,
    Removed,
    Page(Arc<Page>),
}

impl Filling {
    /// What it reads as, where that can be written line by line.
    fn page(&self) -> Option<&Page> {
        match self {
            Self::Zero => Some(&ZERO_PAGE),
            Self::Removed => None,
            Self::Page(page) => Some(page),
        }
    }

    fn content(&self) -> PageContent<'_> {
        match self {
            Self::Zero => PageContent::Zero,
            Self::Removed => PageContent::Removed,
            Self::Page(page) => PageContent::Data(page),
        }
    }
}

impl Overwrite {
    /// The frames of `indices`, to be as in `map`. With a view of what stands in them now, the lines that will have to be
    /// written are found out; frames that are written after that are to be named when it comes to writing.
    pub(super) fn new(
        layout: &MemoryLayout,
        indices: &PageSet,
        map: &PageMap,
        ready: &Ready,
        view: Option<&dyn MemoryView>,
    ) -> Result<Self> {
        let mut frames = Vec::new();
        let mut cold = Vec::new();
        let mut present = ZERO_PAGE;
        for index in indices.indices() {
            let (Some(gfn), Ok(place)) = (layout.gfn(index), usize::try_from(index)) else { continue };
            let filling = match map.get(place) {
                ContentRef::Zero => Filling::Zero,
                ContentRef::Removed => Filling::Removed,
                content @ ContentRef::Stored(id) => {
                    let Some(page) = ready.get(&id) else {
                        cold.push((place, content));
                        continue;
                    };
                    Filling::Page(Arc::clone(page))
                }
            };
            let lines = match (view, filling.page()) {
                (Some(view), Some(_)) if view.removed(gfn) => ALL,
                // Reading a hole would fill it.
                (Some(view), Some(page)) if view.known_zero(gfn) => differing_lines(page, &ZERO_PAGE),
                (Some(view), Some(page)) => {
                    view.read_page(gfn, &mut present)?;
                    differing_lines(page, &present)
                }
                _ => ALL,
            };
            frames.push(Frame { index, gfn, filling, lines });
        }
        Ok(Self { frames, cold: Put::new(cold.into_iter()), covered: indices.clone() })
    }

    /// The frames.
    pub(super) fn covered(&self) -> &PageSet {
        &self.covered
    }

    /// Frames to be written.
    pub(super) fn pages(&self) -> u64 {
        self.frames.len() as u64 + self.cold.pages()
    }

    /// Writes them; those of `changed` as a whole, because something else may stand in them by now.
    pub(super) fn write(
        &self,
        store: &Store,
        machine: &mut dyn Machine,
        layout: &MemoryLayout,
        changed: &PageSet,
    ) -> Result<()> {
        for Frame { index, gfn, filling, lines } in &self.frames {
            if *lines == ALL || changed.contains_index(*index) {
                machine.write_page(*gfn, filling.content())?;
            } else {
                machine.write_lines(*gfn, filling.content(), *lines)?;
            }
        }
        self.cold.write(store, &Ready::new(), machine, layout)
    }
}
