use std::sync::Arc;

use retrovisor_guest::{
    Gfn, Machine, MemoryLayout, MemoryView, Page, PageContent, PageSet, ZERO_PAGE, differing_lines,
};

use super::page_plan::{LoadedPages, PagePlan};
use crate::content::ContentRef;
use crate::error::Result;
use crate::page_map::PageMap;
use crate::store::Store;

/// Every line of a page.
const ALL: u64 = u64::MAX;

/// Frames to be overwritten, in order of address, each with its new content: nothing has to be looked up in the pause,
/// and of a page that is mostly there only the lines that differ are written. Pages that are not loaded come last,
/// from the packs.
pub(super) struct RestorePlan {
    frames: Vec<Frame>,
    cold: PagePlan,
    covered: PageSet,
}

struct Frame {
    index: u64,
    gfn: Gfn,
    source: PageSource,
    /// The lines that differ from what the frame held when the list was made.
    lines: u64,
}

enum PageSource {
    Zero,
    Removed,
    Page(Arc<Page>),
}

impl PageSource {
    /// What it reads as, if it can be written line by line.
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

impl RestorePlan {
    /// The frames of `indices`, to be as in `map`. With a view of what they hold now, the lines that differ are found
    /// out; frames that are written after that are named when the plan is written.
    pub(super) fn new(
        layout: &MemoryLayout,
        indices: &PageSet,
        map: &PageMap,
        loaded: &LoadedPages,
        view: Option<&dyn MemoryView>,
    ) -> Result<Self> {
        let mut frames = Vec::new();
        let mut cold = Vec::new();
        let mut current = ZERO_PAGE;
        for index in indices.indices() {
            let (Some(gfn), Ok(place)) = (layout.gfn(index), usize::try_from(index)) else { continue };
            let source = match map.get(place) {
                ContentRef::Zero => PageSource::Zero,
                ContentRef::Removed => PageSource::Removed,
                content @ ContentRef::Stored(id) => {
                    let Some(page) = loaded.get(&id) else {
                        cold.push((place, content));
                        continue;
                    };
                    PageSource::Page(Arc::clone(page))
                }
            };
            let lines = match (view, source.page()) {
                (Some(view), Some(_)) if view.removed(gfn) => ALL,
                // Reading a hole would fill it.
                (Some(view), Some(page)) if view.known_zero(gfn) => differing_lines(page, &ZERO_PAGE),
                (Some(view), Some(page)) => {
                    view.read_page(gfn, &mut current)?;
                    differing_lines(page, &current)
                }
                _ => ALL,
            };
            frames.push(Frame { index, gfn, source, lines });
        }
        Ok(Self { frames, cold: PagePlan::new(cold.into_iter()), covered: indices.clone() })
    }

    /// The frames.
    pub(super) fn covered(&self) -> &PageSet {
        &self.covered
    }

    /// Frames to be written.
    pub(super) fn pages(&self) -> u64 {
        self.frames.len() as u64 + self.cold.pages()
    }

    /// Writes them; those of `changed` as a whole, because they may hold something else by now.
    pub(super) fn write(
        &self,
        store: &Store,
        machine: &mut dyn Machine,
        layout: &MemoryLayout,
        changed: &PageSet,
    ) -> Result<()> {
        for Frame { index, gfn, source, lines } in &self.frames {
            if *lines == ALL || changed.contains_index(*index) {
                machine.write_page(*gfn, source.content())?;
            } else {
                machine.write_lines(*gfn, source.content(), *lines)?;
            }
        }
        self.cold.write(store, &LoadedPages::new(), machine, layout)
    }
}
