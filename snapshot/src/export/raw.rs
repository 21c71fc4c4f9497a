use std::path::Path;

use super::output::Output;
use super::pages::{ExportReport, Progress};
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

impl Store {
    /// Writes a checkpoint's memory as a flat image: the byte at offset N is the one at guest-physical address
    /// N. Zero pages, removed ones and what is between memory slots are holes of the file, which read as zeros.
    /// The file is for its owner only; it must not be there before, and is there as a whole or not at all.
    pub fn export_raw(
        &self,
        checkpoint: CheckpointId,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<ExportReport> {
        let layout = self.layout_at(checkpoint)?;
        let length_bytes = layout.slots().last().map_or(0, |slot| slot.end().0);
        let mut output = Output::begin(path)?;
        let mut pages = 0;
        self.each_page(checkpoint, progress, |gfn, page| {
            pages += 1;
            output.write_at(gfn.gpa().0, page)
        })?;
        let disk_bytes = output.finish(Some(length_bytes))?;
        Ok(ExportReport { length_bytes, disk_bytes, pages, vmcoreinfo: false })
    }
}
