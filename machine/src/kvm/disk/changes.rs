use std::fs::File;
use std::sync::Arc;

use retrovisor_guest::{BLOCK_SIZE, BlockRun, DiskChanges, MachineError, RUN_BLOCKS_MAX, RunContent};

use super::delta::Stored;
use super::history::Pin;
use super::slot_file;

/// The blocks in which two captured states differ, read from slots that do not change.
pub(super) struct Changes {
    pub(super) disk: String,
    pub(super) file: Arc<File>,
    /// Ascending.
    pub(super) blocks: Vec<(u64, Stored)>,
    /// How many of them were returned.
    pub(super) returned: usize,
    /// Whether the disk has a base; without one, unwritten blocks are zeros.
    pub(super) has_base: bool,
    pub(super) _pin: Pin,
}

impl Changes {
    fn content(&self, stored: Stored) -> RunContent {
        match stored {
            Stored::Slot(_) => RunContent::Data,
            Stored::Base if self.has_base => RunContent::Base,
            Stored::Base | Stored::Zero => RunContent::Zero,
        }
    }
}

impl DiskChanges for Changes {
    fn next_run(&mut self, bytes: &mut Vec<u8>) -> Result<Option<BlockRun>, MachineError> {
        bytes.clear();
        let rest = &self.blocks[self.returned..];
        let Some(&(first, stored)) = rest.first() else { return Ok(None) };
        let content = self.content(stored);
        let count_max = if content == RunContent::Data { RUN_BLOCKS_MAX } else { u64::MAX };
        let run = rest.iter().zip(first..).take_while(|((block, stored), expected)| {
            block == expected && self.content(*stored) == content && expected - first < count_max
        });
        let run: Vec<Stored> = run.map(|((_, stored), _)| *stored).collect();
        if content == RunContent::Data {
            bytes.resize(run.len() * BLOCK_SIZE, 0);
            let slots = run.iter().map(|stored| if let Stored::Slot(slot) = stored { *slot } else { 0 });
            let slots: Vec<u32> = slots.collect();
            let mut at = 0;
            for row in slots.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
                let into = &mut bytes[at..at + row.len() * BLOCK_SIZE];
                slot_file::read(&self.file, row[0], 0, into).map_err(|source| MachineError::Io {
                    doing: format!("reading what was written to disk {}", self.disk),
                    source,
                })?;
                at += row.len() * BLOCK_SIZE;
            }
        }
        self.returned += run.len();
        Ok(Some(BlockRun { first, count: run.len() as u64, content }))
    }
}
