use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use retrovisor_guest::{
    BLOCK_SIZE, BaseFile, BlockContent, BlockRun, DiskBase, DiskChanges, DiskShape, DiskState, MachineError,
    RUN_BLOCKS_MAX, RunContent, is_zero,
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
    /// Oldest first.
    snapshots: Vec<(String, Arc<Vec<u8>>)>,
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
        self.snapshots.push((reference.clone(), Arc::new(self.bytes.clone())));
        DiskState { disk: NAME.into(), reference }
    }

    pub(crate) fn retained(&self) -> Vec<DiskState> {
        let state =
            |(reference, _): &(String, _)| DiskState { disk: NAME.into(), reference: reference.clone() };
        self.snapshots.iter().map(state).collect()
    }

    pub(crate) fn find(&self, state: &DiskState) -> Option<&Arc<Vec<u8>>> {
        let found = self.snapshots.iter().find(|(reference, _)| *reference == state.reference);
        found.filter(|_| state.disk == NAME).map(|(_, bytes)| bytes)
    }

    pub(crate) fn release(&mut self, state: &DiskState) {
        self.snapshots.retain(|(reference, _)| *reference != state.reference || state.disk != NAME);
    }

    pub(crate) fn write(&mut self, first: u64, contents: &[BlockContent<'_>]) -> Result<(), MachineError> {
        let blocks = self.shapes.first().map_or(0, DiskShape::blocks);
        if self.base.is_none() || first.checked_add(contents.len() as u64).is_none_or(|end| end > blocks) {
            return Err(refused(format!("it has no {} blocks from {first} on", contents.len())));
        }
        for (content, block) in contents.iter().zip(first..) {
            let (start, end) = range(block, self.bytes.len());
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
        Ok(Box::new(Changes { base: Arc::clone(base), new: find(at)?, old, block: 0 }))
    }
}

/// The blocks in which two copies differ.
struct Changes {
    base: Arc<Vec<u8>>,
    new: Arc<Vec<u8>>,
    old: Arc<Vec<u8>>,
    block: u64,
}

impl Changes {
    fn blocks(&self) -> u64 {
        (self.new.len() as u64).div_ceil(BLOCK_SIZE as u64)
    }

    /// A block's content, if it differs.
    fn content_at(&self, block: u64) -> Option<RunContent> {
        let (start, end) = range(block, self.new.len());
        let new = &self.new[start..end];
        (*new != self.old[start..end]).then(|| match new {
            new if *new == self.base[start..end] => RunContent::Base,
            new if new.iter().all(|byte| *byte == 0) => RunContent::Zero,
            _ => RunContent::Data,
        })
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
                let (start, end) = range(first + count, self.new.len());
                let mut page = retrovisor_guest::ZERO_PAGE;
                page[..end - start].copy_from_slice(&self.new[start..end]);
                debug_assert!(!is_zero(&page));
                bytes.extend(page);
            }
            count += 1;
        }
        self.block = first + count;
        Ok(Some(BlockRun { first, count, content }))
    }
}

/// The bytes of a block that exists.
fn range(block: u64, length: usize) -> (usize, usize) {
    let start = usize::try_from(block).unwrap_or(usize::MAX).saturating_mul(BLOCK_SIZE);
    (start, start.saturating_add(BLOCK_SIZE).min(length))
}

fn refused(message: String) -> MachineError {
    MachineError::Driver { doing: format!("reading or writing disk {NAME}"), message }
}
