use retrovisor_guest::{MemoryError, MemoryView, PAGE_SIZE};

use super::opening::Store;
use crate::content::{ContentId, ContentRef};
use crate::error::{Error, Result};
use crate::id::CheckpointId;

/// Pages read at a time: 16 MiB.
const WINDOW: usize = 4096;

/// The hash of all pages of a view in order of index, zero and removed ones as zeros. BLAKE3 without a key, so that it
/// can be compared with any other copy of the memory.
pub fn image_hash(view: &dyn MemoryView) -> Result<blake3::Hash, MemoryError> {
    let mut hasher = blake3::Hasher::new();
    let mut window = Vec::with_capacity(WINDOW * PAGE_SIZE);
    let mut page = [0; PAGE_SIZE];
    for gfn in view.layout().gfns() {
        if view.known_zero(gfn) {
            window.resize(window.len() + PAGE_SIZE, 0);
        } else {
            view.read_page(gfn, &mut page)?;
            window.extend_from_slice(&page);
        }
        if window.len() == WINDOW * PAGE_SIZE {
            hasher.update(&window);
            window.clear();
        }
    }
    hasher.update(&window);
    Ok(hasher.finalize())
}

impl Store {
    /// An error in reading a checkpoint, unless it was pruned meanwhile: then that is the error.
    pub(crate) fn unless_gone(&self, checkpoint: CheckpointId, error: Error) -> Error {
        if !matches!(error, Error::Damaged(_)) {
            return error;
        }
        match self.catalogue().link(checkpoint) {
            Err(gone @ Error::NotFound { .. }) => self.catalogue().explain_missing(checkpoint, gone),
            _ => error,
        }
    }

    /// The hash of all pages of a checkpoint in order, the same that [`image_hash`] computes of a view. Reads every
    /// page, and checks it.
    pub fn image_hash(&self, checkpoint: CheckpointId) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        self.each_window(checkpoint, |_, _, bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(hasher.finalize())
    }

    /// Calls `each` with the pages of a checkpoint, ascending, some at a time: how many came before and how many there
    /// are, what they hold, and their bytes. Each is checked; those without stored contents read as zeros.
    pub(crate) fn each_window(
        &self,
        checkpoint: CheckpointId,
        mut each: impl FnMut(Span, &[ContentRef], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let contents: Vec<ContentRef> = self.map(checkpoint)?.iter().collect();
        let mut window = Vec::with_capacity(WINDOW * PAGE_SIZE);
        for (part, first) in contents.chunks(WINDOW).zip((0..).step_by(WINDOW)) {
            window.clear();
            window.resize(part.len() * PAGE_SIZE, 0);
            let mut wanted: Vec<(ContentId, usize)> =
                part.iter().enumerate().filter_map(|(at, content)| Some((content.stored()?, at))).collect();
            wanted.sort_unstable();
            let mut ids: Vec<ContentId> = wanted.iter().map(|(id, _)| *id).collect();
            ids.dedup();
            self.each_content(&ids, |id, page| {
                let first = wanted.partition_point(|(other, _)| *other < id);
                for (_, at) in wanted[first..].iter().take_while(|(other, _)| *other == id) {
                    window[at * PAGE_SIZE..(at + 1) * PAGE_SIZE].copy_from_slice(&page[..]);
                }
                Ok(())
            })
            .map_err(|error| self.unless_gone(checkpoint, error))?;
            each(Span { first, pages: contents.len() as u64 }, part, &window)?;
        }
        Ok(())
    }
}

/// The place of a window in the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// The index of its first page.
    pub(crate) first: u64,
    /// Pages of the whole image.
    pub(crate) pages: u64,
}
