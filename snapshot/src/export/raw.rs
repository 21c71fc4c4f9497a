use std::path::Path;

use super::output::Output;
use super::pages::{ExportReport, Progress};
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

impl Store {
    /// Writes a checkpoint's memory as a flat image: the byte at guest-physical address N is at offset N. Zero pages,
    /// removed ones and the gaps between memory slots are holes of the file, which read as zeros. The file is
    /// accessible to its owner only; it must not exist before, and exists as a whole or not at all.
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
