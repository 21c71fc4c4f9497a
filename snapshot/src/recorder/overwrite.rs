use std::sync::Arc;

use retrovisor_guest::{Gfn, Machine, MemoryLayout, Page, PageContent, PageSet};

use super::put::{Put, Ready};
use crate::content::ContentRef;
use crate::error::Result;
use crate::page_map::PageMap;
use crate::store::Store;

/// Frames to be overwritten, in order of address, each with what is to stand in it: nothing has to be looked up while
/// the guest stands still. What was not ready in memory comes last, from the packs.
pub(super) struct Overwrite {
    frames: Vec<(Gfn, Filling)>,
    cold: Put,
    covered: PageSet,
}

enum Filling {
    Zero,
    Removed,
    Page(Arc<Page>),
}

impl Overwrite {
    /// The frames of `indices`, to be as in `map`.
    pub(super) fn new(layout: &MemoryLayout, indices: &PageSet, map: &PageMap, ready: &Ready) -> Self {
        let mut frames = Vec::new();
        let mut cold = Vec::new();
        for index in indices.indices() {
            let (Some(gfn), Ok(index)) = (layout.gfn(index), usize::try_from(index)) else { continue };
            let filling = match map.get(index) {
                ContentRef::Zero => Filling::Zero,
                ContentRef::Removed => Filling::Removed,
                content @ ContentRef::Stored(id) => {
                    let Some(page) = ready.get(&id) else {
                        cold.push((index, content));
                        continue;
                    };
                    Filling::Page(Arc::clone(page))
                }
            };
            frames.push((gfn, filling));
        }
        Self { frames, cold: Put::new(cold.into_iter()), covered: indices.clone() }
    }

    /// The frames.
    pub(super) fn covered(&self) -> &PageSet {
        &self.covered
    }

    /// Frames to be written.
    pub(super) fn pages(&self) -> u64 {
        self.frames.len() as u64 + self.cold.pages()
    }

    /// Writes them.
    pub(super) fn write(
        &self,
        store: &Store,
        machine: &mut dyn Machine,
        layout: &MemoryLayout,
    ) -> Result<()> {
        for (gfn, filling) in &self.frames {
            let content = match filling {
                Filling::Zero => PageContent::Zero,
                Filling::Removed => PageContent::Removed,
                Filling::Page(page) => PageContent::Data(page),
            };
            machine.write_page(*gfn, content)?;
        }
        self.cold.write(store, &Ready::new(), machine, layout)
    }
}
