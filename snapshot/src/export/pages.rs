use std::ops::ControlFlow;

use retrovisor_guest::{Gfn, MemoryLayout, PAGE_SIZE, Page};
use serde::Serialize;

use crate::content::{ContentId, ContentRef};
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::store::Store;

/// Pages read at a time: 16 MiB.
const WINDOW: usize = 4096;

/// How far an export or import is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportProgress {
    /// Pages (or, of an archive, contents) done.
    pub done: u64,
    /// All of them.
    pub total: u64,
}

/// What an export wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// Length of the file in bytes, holes included.
    pub length_bytes: u64,
    /// Bytes that it takes on the disk.
    pub disk_bytes: u64,
    /// Pages with data that were written.
    pub pages: u64,
    /// Whether the guest's VMCOREINFO was found and put into an ELF core.
    pub vmcoreinfo: bool,
}

/// Told after each part; stops the work with [`ControlFlow::Break`].
pub(super) type Progress<'a> = &'a mut dyn FnMut(ExportProgress) -> ControlFlow<()>;

/// Tells how far the work is; an error when it is to be stopped.
pub(super) fn tell(progress: Progress<'_>, done: u64, total: u64) -> Result<()> {
    match progress(ExportProgress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    }
}

impl Store {
    /// The memory layout of a checkpoint.
    pub(super) fn layout_at(&self, checkpoint: CheckpointId) -> Result<MemoryLayout> {
        let machine = self.catalogue().checkpoint(checkpoint)?.machine;
        Ok(self.catalogue().machine_by_id(machine)?.identity.layout)
    }

    /// Calls `each` with every page of a checkpoint that holds data, ascending; each is checked.
    pub(super) fn each_page(
        &self,
        checkpoint: CheckpointId,
        progress: Progress<'_>,
        mut each: impl FnMut(Gfn, &Page) -> Result<()>,
    ) -> Result<()> {
        let layout = self.layout_at(checkpoint)?;
        let map = self.map(checkpoint)?;
        let contents: Vec<ContentRef> = map.iter().collect();
        let mut window = vec![0; WINDOW * PAGE_SIZE];
        let mut done = 0;
        for part in contents.chunks(WINDOW) {
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
            let pages = window.as_chunks::<PAGE_SIZE>().0;
            for (at, content) in part.iter().enumerate() {
                if content.stored().is_some()
                    && let Some(gfn) = layout.gfn(done + at as u64)
                {
                    each(gfn, &pages[at])?;
                }
            }
            done += part.len() as u64;
            tell(progress, done, contents.len() as u64)?;
        }
        Ok(())
    }
}
