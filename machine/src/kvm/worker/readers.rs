use std::collections::BTreeMap;
use std::ops::Range;

use retrovisor_guest::{DiskBlocks, DiskChanges, MachineError, Page, ZERO_PAGE};

use super::message::Run;

/// What a client is reading from disks, by number.
#[derive(Default)]
pub(super) struct Readers {
    changes: BTreeMap<u64, Box<dyn DiskChanges>>,
    blocks: BTreeMap<u64, Box<dyn DiskBlocks>>,
    made: u64,
    bytes: Vec<u8>,
}

impl Readers {
    pub(super) fn clear(&mut self) {
        self.changes.clear();
        self.blocks.clear();
    }

    /// Returns the number of a new reader.
    pub(super) fn add_changes(&mut self, changes: Box<dyn DiskChanges>) -> u64 {
        self.made += 1;
        self.changes.insert(self.made, changes);
        self.made
    }

    /// The same.
    pub(super) fn add_blocks(&mut self, blocks: Box<dyn DiskBlocks>) -> u64 {
        self.made += 1;
        self.blocks.insert(self.made, blocks);
        self.made
    }

    pub(super) fn end(&mut self, id: u64) {
        self.changes.remove(&id);
        self.blocks.remove(&id);
    }

    /// The next run of changed blocks, with its bytes.
    pub(super) fn next_run(&mut self, id: u64) -> Result<(Option<Run>, &[u8]), MachineError> {
        self.bytes.clear();
        let changes = self.changes.get_mut(&id).ok_or_else(not_begun)?;
        Ok((changes.next_run(&mut self.bytes)?.as_ref().map(Run::of), &self.bytes))
    }

    /// The runs of ranges of blocks, with their bytes.
    pub(super) fn read_blocks(
        &mut self,
        id: u64,
        ranges: &[Range<u64>],
        data_max: u64,
    ) -> Result<(Vec<Run>, &[u8]), MachineError> {
        let blocks = self.blocks.get_mut(&id).ok_or_else(not_begun)?;
        let runs = blocks.read(ranges, data_max, &mut self.bytes)?;
        Ok((runs.iter().map(Run::of).collect(), &self.bytes))
    }

    /// A block of a base image.
    pub(super) fn read_base(&mut self, id: u64, block: u64) -> Result<Page, MachineError> {
        let mut page = ZERO_PAGE;
        self.blocks.get_mut(&id).ok_or_else(not_begun)?.read_base(block, &mut page)?;
        Ok(page)
    }
}

fn not_begun() -> MachineError {
    MachineError::Driver { doing: "reading blocks".into(), message: "that was not begun".into() }
}
