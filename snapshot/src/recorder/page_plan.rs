use std::collections::HashMap;
use std::sync::Arc;

use retrovisor_guest::{Gfn, Machine, MemoryLayout, Page, PageContent, PageSet};

use crate::content::{ContentId, ContentRef};
use crate::error::Result;
use crate::page_map::PageMap;
use crate::store::Store;

/// Pages loaded before the guest is paused, at most: 256 MiB. The rest is read in the pause.
const LOADED_MAX: usize = 1 << 16;

/// Frames to be written, each with its content.
pub(super) struct PagePlan {
    /// Frames with data, by content, ascending.
    data: Vec<(ContentId, usize)>,
    /// Frames without data.
    bare: Vec<(usize, ContentRef)>,
}

/// Pages that were loaded into memory, by content.
pub(super) type LoadedPages = HashMap<ContentId, Arc<Page>>;

impl PagePlan {
    /// Writes the second of two maps where they differ.
    pub(super) fn difference(from: &PageMap, to: &PageMap) -> Self {
        Self::new(from.diff(to).map(|(index, _, content)| (index, content)))
    }

    /// Writes the contents of the map into these frames.
    pub(super) fn of(frames: &PageSet, map: &PageMap) -> Self {
        let indices = frames.indices().filter_map(|index| usize::try_from(index).ok());
        Self::new(indices.map(|index| (index, map.get(index))))
    }

    /// Writes these contents into these frames.
    pub(super) fn new(frames: impl Iterator<Item = (usize, ContentRef)>) -> Self {
        let (mut data, mut bare) = (Vec::new(), Vec::new());
        for (index, content) in frames {
            match content {
                ContentRef::Stored(id) => data.push((id, index)),
                other => bare.push((index, other)),
            }
        }
        data.sort_unstable();
        Self { data, bare }
    }

    /// Frames to be written.
    pub(super) fn pages(&self) -> u64 {
        (self.data.len() + self.bare.len()) as u64
    }

    /// Loads missing contents, up to the bound.
    pub(super) fn load(&self, store: &Store, loaded: &mut LoadedPages) -> Result<()> {
        let mut missing = self.missing(loaded);
        missing.truncate(LOADED_MAX.saturating_sub(loaded.len()));
        store.each_content(&missing, |id, page| {
            loaded.insert(id, Arc::clone(page));
            Ok(())
        })
    }

    /// Writes every frame.
    pub(super) fn write(
        &self,
        store: &Store,
        loaded: &LoadedPages,
        machine: &mut dyn Machine,
        layout: &MemoryLayout,
    ) -> Result<()> {
        let gfn = |index: usize| layout.gfn(index as u64).unwrap_or(Gfn(0));
        for (index, content) in &self.bare {
            let content =
                if *content == ContentRef::Removed { PageContent::Removed } else { PageContent::Zero };
            machine.write_page(gfn(*index), content)?;
        }
        for (id, index) in &self.data {
            if let Some(page) = loaded.get(id) {
                machine.write_page(gfn(*index), PageContent::Data(page))?;
            }
        }
        store.each_content(&self.missing(loaded), |id, page| {
            for index in self.frames_of(id) {
                machine.write_page(gfn(index), PageContent::Data(page))?;
            }
            Ok(())
        })
    }

    /// Calls `each` with every frame and its page, `None` for zero and removed ones.
    pub(super) fn each(
        &self,
        store: &Store,
        mut each: impl FnMut(usize, ContentRef, Option<&Page>) -> Result<()>,
    ) -> Result<()> {
        for (index, content) in &self.bare {
            each(*index, *content, None)?;
        }
        store.each_content(&self.missing(&LoadedPages::new()), |id, page| {
            for index in self.frames_of(id) {
                each(index, ContentRef::Stored(id), Some(page))?;
            }
            Ok(())
        })
    }

    /// The contents that are not loaded, ascending, each once.
    fn missing(&self, loaded: &LoadedPages) -> Vec<ContentId> {
        let mut ids: Vec<_> =
            self.data.iter().map(|(id, _)| *id).filter(|id| !loaded.contains_key(id)).collect();
        ids.dedup();
        ids
    }

    /// The frames with a content.
    fn frames_of(&self, id: ContentId) -> impl Iterator<Item = usize> + '_ {
        let first = self.data.partition_point(|(other, _)| *other < id);
        self.data[first..].iter().take_while(move |(other, _)| *other == id).map(|(_, index)| *index)
    }
}
