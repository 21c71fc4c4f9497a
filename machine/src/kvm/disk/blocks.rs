use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use retrovisor_guest::{BLOCK_SIZE, BlockRun, DiskBlocks, MachineError, Page, RunContent};

use super::delta::Stored;
use super::history::Pin;
use super::overlay::SharedOverlay;
use super::slot_file;

/// The blocks of a captured state, whose slots do not change. Where each block is follows from the current map and from
/// what was written since; the lists of changed blocks are not used.
pub(super) struct Blocks {
    pub(super) disk: SharedOverlay,
    pub(super) name: String,
    pub(super) state: u64,
    pub(super) file: Arc<File>,
    pub(super) _pin: Pin,
}

impl Blocks {
    fn failed(&self, source: io::Error) -> MachineError {
        MachineError::Io { doing: format!("reading what was written to disk {}", self.name), source }
    }
}

impl DiskBlocks for Blocks {
    fn read(
        &mut self,
        ranges: &[Range<u64>],
        data_max: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Vec<BlockRun>, MachineError> {
        BlockRun::of_ranges(ranges, data_max, bytes, |range, runs, bytes| {
            // A lock for each range: the guest may want to write.
            let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
            let places = disk.places(self.state, range.clone());
            drop(disk);
            for (block, stored) in range.clone().zip(places) {
                let content = match stored {
                    Stored::Base => RunContent::Base,
                    Stored::Zero => RunContent::Zero,
                    Stored::Slot(slot) => {
                        let at = bytes.len();
                        bytes.resize(at + BLOCK_SIZE, 0);
                        let read = slot_file::read(&self.file, slot, 0, &mut bytes[at..]);
                        read.map_err(|source| self.failed(source))?;
                        RunContent::Data
                    }
                };
                BlockRun::append(runs, block, 1, content);
            }
            Ok(())
        })
    }

    fn read_base(&mut self, block: u64, into: &mut Page) -> Result<(), MachineError> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let read = disk.read_base(block, into);
        drop(disk);
        read.map_err(|source| self.failed(source))
    }
}
