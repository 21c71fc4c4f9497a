use std::collections::HashMap;
use std::sync::Arc;

use retrovisor_guest::{Gfn, Machine, MemoryLayout, Page, PageContent};

use crate::content::{ContentId, ContentRef};
use crate::error::Result;
use crate::page_map::PageMap;
use crate::store::Store;

/// Pages read before the guest is stopped, at most: 256 MiB. The rest is read while it stands still.
const READY_MAX: usize = 1 << 16;

/// Frames to be written, and what is to stand in them.
pub(super) struct Put {
    /// Frames by content, ascending.
    data: Vec<(ContentId, usize)>,
    /// Frames without data.
    bare: Vec<(usize, ContentRef)>,
}

/// Pages that are in memory already.
pub(super) type Ready = HashMap<ContentId, Arc<Page>>;

impl Put {
    /// What leads from one map to another.
    pub(super) fn difference(from: &PageMap, to: &PageMap) -> Self {
        Self::new(from.diff(to).map(|(index, _, content)| (index, content)))
    }

    /// These frames.
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

    /// Reads contents that are not ready yet, as many as may be held.
    pub(super) fn make_ready(&self, store: &Store, ready: &mut Ready) -> Result<()> {
        let mut wanted = self.wanted(ready);
        wanted.truncate(READY_MAX.saturating_sub(ready.len()));
        store.each_content(&wanted, |id, page| {
            ready.insert(id, Arc::clone(page));
            Ok(())
        })
    }

    /// Writes every frame.
    pub(super) fn write(
        &self,
        store: &Store,
        ready: &Ready,
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
            if let Some(page) = ready.get(id) {
                machine.write_page(gfn(*index), PageContent::Data(page))?;
            }
        }
        store.each_content(&self.wanted(ready), |id, page| {
            for index in self.frames_of(id) {
                machine.write_page(gfn(index), PageContent::Data(page))?;
            }
            Ok(())
        })
    }

    /// Calls `each` with every frame and its contents, `None` for zero and removed ones.
    pub(super) fn each(
        &self,
        store: &Store,
        mut each: impl FnMut(usize, ContentRef, Option<&Page>) -> Result<()>,
    ) -> Result<()> {
        for (index, content) in &self.bare {
            each(*index, *content, None)?;
        }
        store.each_content(&self.wanted(&Ready::new()), |id, page| {
            for index in self.frames_of(id) {
                each(index, ContentRef::Stored(id), Some(page))?;
            }
            Ok(())
        })
    }

    /// The contents that are not ready, ascending, each once.
    fn wanted(&self, ready: &Ready) -> Vec<ContentId> {
        let mut ids: Vec<_> =
            self.data.iter().map(|(id, _)| *id).filter(|id| !ready.contains_key(id)).collect();
        ids.dedup();
        ids
    }

    /// The frames that one content belongs in.
    fn frames_of(&self, id: ContentId) -> impl Iterator<Item = usize> + '_ {
        let first = self.data.partition_point(|(other, _)| *other < id);
        self.data[first..].iter().take_while(move |(other, _)| *other == id).map(|(_, index)| *index)
    }
}
