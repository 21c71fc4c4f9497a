use std::ops::ControlFlow;

use retrovisor_guest::{Gfn, MemoryLayout, Page};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::store::Store;

/// Progress of an export or import.
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

/// Called after each part; stops the work with [`ControlFlow::Break`].
pub(super) type Progress<'a> = &'a mut dyn FnMut(ExportProgress) -> ControlFlow<()>;

/// Reports progress; an error when the work is to be stopped.
pub(super) fn report(progress: Progress<'_>, done: u64, total: u64) -> Result<()> {
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
        self.each_window(checkpoint, |span, contents, bytes| {
            for ((content, page), index) in contents.iter().zip(bytes.as_chunks().0).zip(span.first..) {
                if content.stored().is_some()
                    && let Some(gfn) = layout.gfn(index)
                {
                    each(gfn, page)?;
                }
            }
            report(progress, span.first + contents.len() as u64, span.pages)
        })
    }
}
