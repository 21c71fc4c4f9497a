use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use retrovisor_guest::{
    BLOCK_SIZE, BaseFile, BlockContent, BlockRun, DiskBase, DiskBlocks, DiskChanges, DiskShape, DiskState,
    MachineError, Page, RUN_BLOCKS_MAX, RunContent, ZERO_PAGE,
};

/// The name of the one disk.
pub(crate) const NAME: &str = "d0";

/// Copies made in this process.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// The bytes of a disk, and copies of them.
#[derive(Default)]
pub(crate) struct MemoryDisk {
    /// Its initial contents; with a base, its blocks can be read and written.
    base: Option<Arc<Vec<u8>>>,
    shapes: Vec<DiskShape>,
    pub(crate) bytes: Vec<u8>,
    /// Blocks that were written since the newest snapshot, and are not to count as changed in the next one.
    unreported: BTreeSet<u64>,
    /// Oldest first.
    snapshots: Vec<Snapshot>,
}

struct Snapshot {
    reference: String,
    bytes: Arc<Vec<u8>>,
    /// Blocks that do not count as changed since the snapshot before.
    unreported: BTreeSet<u64>,
}

impl MemoryDisk {
    /// A disk over a base image.
    pub(crate) fn over(base: Vec<u8>) -> Self {
        let length_bytes = base.len() as u64;
        let file = BaseFile { path: "memory".into(), length_bytes, modified_ns: 0 };
        let base_files = Some(DiskBase { files: vec![file] });
        let shape = DiskShape { name: NAME.into(), size_bytes: length_bytes, base: base_files };
        Self { bytes: base.clone(), base: Some(Arc::new(base)), shapes: vec![shape], ..Self::default() }
    }

    pub(crate) fn shapes(&self) -> &[DiskShape] {
        &self.shapes
    }

    pub(crate) fn shapes_mut(&mut self) -> &mut [DiskShape] {
        &mut self.shapes
    }

    pub(crate) fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    pub(crate) fn retain(&mut self) -> DiskState {
        // No other machine, in this process or another, may have the same name.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let reference = format!("m{}-{number}", std::process::id());
        self.snapshots.push(Snapshot {
            reference: reference.clone(),
            bytes: Arc::new(self.bytes.clone()),
            unreported: std::mem::take(&mut self.unreported),
        });
        DiskState { disk: NAME.into(), reference }
    }

    pub(crate) fn retained(&self) -> Vec<DiskState> {
        let state = |of: &Snapshot| DiskState { disk: NAME.into(), reference: of.reference.clone() };
        self.snapshots.iter().map(state).collect()
    }

    pub(crate) fn find(&self, state: &DiskState) -> Option<&Arc<Vec<u8>>> {
        self.number(state).map(|number| &self.snapshots[number].bytes)
    }

    fn number(&self, state: &DiskState) -> Option<usize> {
        let found = self.snapshots.iter().position(|of| of.reference == state.reference);
        found.filter(|_| state.disk == NAME)
    }

    pub(crate) fn release(&mut self, state: &DiskState) {
        self.snapshots.retain(|of| of.reference != state.reference || state.disk != NAME);
    }

    pub(crate) fn write(&mut self, first: u64, contents: &[BlockContent<'_>]) -> Result<(), MachineError> {
        let blocks = self.shapes.first().map_or(0, DiskShape::blocks);
        if self.base.is_none() || first.checked_add(contents.len() as u64).is_none_or(|end| end > blocks) {
            return Err(refused(format!("it has no {} blocks from {first} on", contents.len())));
        }
        for (content, block) in contents.iter().zip(first..) {
            let (start, end) = range_of(block, self.bytes.len());
            match content {
                BlockContent::Zero => self.bytes[start..end].fill(0),
                BlockContent::Data(page) => self.bytes[start..end].copy_from_slice(&page[..end - start]),
                BlockContent::Base => {
                    if let Some(base) = &self.base {
                        self.bytes[start..end].copy_from_slice(&base[start..end]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes blocks that are not to count as changed in the next snapshot.
    pub(crate) fn write_unreported(&mut self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = start.saturating_add(bytes.len()).min(self.bytes.len());
        self.bytes[start..end].copy_from_slice(&bytes[..end - start]);
        self.unreported.extend((start / BLOCK_SIZE) as u64..end.div_ceil(BLOCK_SIZE) as u64);
    }

    pub(crate) fn blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        let base = self.base.as_ref().ok_or_else(|| refused("it has no blocks".into()))?;
        let bytes = self.find(at).ok_or_else(|| refused(format!("{} is not retained", at.reference)))?;
        Ok(Box::new(Blocks { base: Arc::clone(base), bytes: Arc::clone(bytes) }))
    }

    pub(crate) fn changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let base = self.base.as_ref().ok_or_else(|| refused("it has no blocks".into()))?;
        let find = |state: &DiskState| {
            let found = self.find(state).map(Arc::clone);
            found.ok_or_else(|| refused(format!("{} is not retained", state.reference)))
        };
        let old = since.map_or_else(|| Ok(Arc::clone(base)), find)?;
        let mut unreported = BTreeSet::new();
        if let (Some(since), Some(at)) = (since.and_then(|since| self.number(since)), self.number(at)) {
            let later = self.snapshots.iter().take(at + 1).skip(since + 1);
            unreported.extend(later.flat_map(|of| &of.unreported));
        }
        Ok(Box::new(Changes { base: Arc::clone(base), new: find(at)?, old, unreported, block: 0 }))
    }
}

/// The blocks of a copy.
struct Blocks {
    base: Arc<Vec<u8>>,
    bytes: Arc<Vec<u8>>,
}

impl DiskBlocks for Blocks {
    fn read(
        &mut self,
        ranges: &[Range<u64>],
        data_max: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Vec<BlockRun>, MachineError> {
        BlockRun::of_ranges(ranges, data_max, bytes, |range, runs, bytes| {
            for block in range.clone() {
                let (start, end) = range_of(block, self.bytes.len());
                let content = content(&self.bytes[start..end], &self.base[start..end]);
                if content == RunContent::Data {
                    bytes.extend(page(&self.bytes[start..end]));
                }
                BlockRun::append(runs, block, 1, content);
            }
            Ok(())
        })
    }

    fn read_base(&mut self, block: u64, into: &mut Page) -> Result<(), MachineError> {
        let (start, end) = range_of(block, self.base.len());
        *into = page(&self.base[start..end]);
        Ok(())
    }
}

/// What a block holds.
fn content(bytes: &[u8], base: &[u8]) -> RunContent {
    if bytes == base {
        RunContent::Base
    } else if bytes.iter().all(|byte| *byte == 0) {
        RunContent::Zero
    } else {
        RunContent::Data
    }
}

/// A whole block, with zeros past the disk's end.
fn page(bytes: &[u8]) -> Page {
    let mut page = ZERO_PAGE;
    page[..bytes.len()].copy_from_slice(bytes);
    page
}

/// The blocks in which two copies differ.
struct Changes {
    base: Arc<Vec<u8>>,
    new: Arc<Vec<u8>>,
    old: Arc<Vec<u8>>,
    /// Blocks that do not count as changed.
    unreported: BTreeSet<u64>,
    block: u64,
}

impl Changes {
    fn blocks(&self) -> u64 {
        (self.new.len() as u64).div_ceil(BLOCK_SIZE as u64)
    }

    /// A block's content, if it differs.
    fn content_at(&self, block: u64) -> Option<RunContent> {
        let (start, end) = range_of(block, self.new.len());
        let new = &self.new[start..end];
        let is_reported = *new != self.old[start..end] && !self.unreported.contains(&block);
        is_reported.then(|| content(new, &self.base[start..end]))
    }
}

impl DiskChanges for Changes {
    fn next_run(&mut self, bytes: &mut Vec<u8>) -> Result<Option<BlockRun>, MachineError> {
        bytes.clear();
        let first = (self.block..self.blocks()).find_map(|block| Some((block, self.content_at(block)?)));
        let Some((first, content)) = first else { return Ok(None) };
        let count_max = if content == RunContent::Data { RUN_BLOCKS_MAX } else { u64::MAX };
        let mut count = 0;
        while count < count_max
            && first + count < self.blocks()
            && self.content_at(first + count) == Some(content)
        {
            if content == RunContent::Data {
                let (start, end) = range_of(first + count, self.new.len());
                bytes.extend(page(&self.new[start..end]));
            }
            count += 1;
        }
        self.block = first + count;
        Ok(Some(BlockRun { first, count, content }))
    }
}

/// The bytes of a block that exists.
fn range_of(block: u64, length: usize) -> (usize, usize) {
    let start = usize::try_from(block).unwrap_or(usize::MAX).saturating_mul(BLOCK_SIZE);
    (start, start.saturating_add(BLOCK_SIZE).min(length))
}

fn refused(message: String) -> MachineError {
    MachineError::Driver { doing: format!("reading or writing disk {NAME}"), message }
}
