use super::delta::Stored;

/// Blocks in a leaf: 4 MiB of the disk.
const LEAF_BLOCKS: usize = 1024;

/// The place of each block of a disk. Takes memory only around blocks that were written.
pub(super) struct BlockMap {
    leaves: Vec<Option<Box<[Stored]>>>,
}

impl BlockMap {
    /// All blocks are those of the base.
    pub(super) fn new(blocks: u64) -> Self {
        let leaves = usize::try_from(blocks.div_ceil(LEAF_BLOCKS as u64)).unwrap_or(usize::MAX);
        Self { leaves: (0..leaves).map(|_| None).collect() }
    }

    pub(super) fn get(&self, block: u64) -> Stored {
        let (leaf, at) = place(block);
        let leaf = self.leaves.get(leaf).and_then(Option::as_ref);
        leaf.and_then(|leaf| leaf.get(at)).copied().unwrap_or_default()
    }

    /// Past the end nothing happens.
    pub(super) fn set(&mut self, block: u64, stored: Stored) {
        let (leaf, at) = place(block);
        if let Some(leaf) = self.leaves.get_mut(leaf) {
            let leaf = leaf.get_or_insert_with(|| vec![Stored::Base; LEAF_BLOCKS].into_boxed_slice());
            leaf[at] = stored;
        }
    }
}

/// The leaf, and the block in it.
fn place(block: u64) -> (usize, usize) {
    #[expect(clippy::cast_possible_truncation, reason = "less than a leaf")]
    let at = (block % LEAF_BLOCKS as u64) as usize;
    (usize::try_from(block / LEAF_BLOCKS as u64).unwrap_or(usize::MAX), at)
}
