use std::collections::HashMap;
use std::ops::Range;

use retrovisor_guest::{BLOCK_SIZE, BlockRun, DiskBlocks, Page, RunContent, ZERO_PAGE, is_zero};

use crate::content::{ContentId, ContentRef};
use crate::disk::DiskMap;
use crate::error::Result;
use crate::key::Hash;
use crate::store::Store;

/// Compares blocks of a captured state with a map: by the hashes of contents, so that no pack is read.
///
/// A block is the same if its bytes are, however driver and map say so: QEMU copies whole clusters, so that a block that
/// was not written can be in the overlay with the bytes of the base.
pub(super) struct BlockComparison<'a> {
    store: &'a Store,
    map: &'a DiskMap,
    blocks: &'a mut dyn DiskBlocks,
    bytes: Vec<u8>,
    /// Blocks with a content that must have this hash.
    hashed: Vec<(u64, ContentId, Hash)>,
    different: Vec<u64>,
}

impl<'a> BlockComparison<'a> {
    pub(super) fn new(store: &'a Store, map: &'a DiskMap, blocks: &'a mut dyn DiskBlocks) -> Self {
        Self { store, map, blocks, bytes: Vec::new(), hashed: Vec::new(), different: Vec::new() }
    }

    /// Compares ranges, in this order, until `data_max` blocks with data were read. Returns how many ranges it were.
    pub(super) fn ranges(&mut self, ranges: &[Range<u64>], data_max: u64) -> Result<usize> {
        let mut bytes = std::mem::take(&mut self.bytes);
        let runs = self.blocks.read(ranges, data_max, &mut bytes)?;
        let mut pages = bytes.as_chunks::<BLOCK_SIZE>().0.iter();
        for run in &runs {
            self.run(run, &mut pages)?;
        }
        self.bytes = bytes;
        let mut left: u64 = runs.iter().map(|run| run.count).sum();
        Ok(ranges
            .iter()
            .take_while(|range| {
                let length = range.end - range.start;
                let is_done = length <= left;
                left = left.saturating_sub(length);
                is_done
            })
            .count())
    }

    /// Blocks that wait for their hashes to be looked up.
    pub(super) fn waiting(&self) -> usize {
        self.hashed.len()
    }

    /// Returns the blocks that differ of those that were read since the last call, ascending. A content that was removed
    /// from the catalogue meanwhile is passed over.
    pub(super) fn take_different(&mut self) -> Result<Vec<u64>> {
        let hashed = std::mem::take(&mut self.hashed);
        let mut ids: Vec<ContentId> = hashed.iter().map(|(_, id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        let places = self.store.catalogue().places(&ids)?;
        let known: HashMap<ContentId, Hash> =
            places.into_iter().map(|place| (place.id, place.hash)).collect();
        let mut different = std::mem::take(&mut self.different);
        let differs =
            |(_, id, hash): &&(u64, ContentId, Hash)| known.get(id).is_some_and(|known| known != hash);
        different.extend(hashed.iter().filter(differs).map(|(block, ..)| *block));
        different.sort_unstable();
        Ok(different)
    }

    fn run<'p>(&mut self, run: &BlockRun, pages: &mut impl Iterator<Item = &'p Page>) -> Result<()> {
        let blocks = run.first..run.first.saturating_add(run.count);
        match run.content {
            RunContent::Base => {
                // Most of a disk is not written, neither there nor in the map.
                let written: Vec<_> = self.map.written(blocks).collect();
                for (block, expected) in written {
                    let page = self.base(block)?;
                    self.compare(block, expected, &page)?;
                }
            }
            RunContent::Zero => {
                for block in blocks {
                    let expected = self.map.get(block);
                    if expected != ContentRef::Zero {
                        self.compare(block, expected, &ZERO_PAGE)?;
                    }
                }
            }
            RunContent::Data => {
                for (block, page) in blocks.zip(pages) {
                    self.compare(block, self.map.get(block), page)?;
                }
            }
        }
        Ok(())
    }

    /// Compares the bytes of a block with what the map says.
    fn compare(&mut self, block: u64, expected: ContentRef, page: &Page) -> Result<()> {
        let is_same = match expected {
            ContentRef::Zero => is_zero(page),
            ContentRef::Removed => self.base(block)? == *page,
            // Stored contents are never zero.
            ContentRef::Stored(_) if is_zero(page) => false,
            ContentRef::Stored(id) => {
                self.hashed.push((block, id, self.store.key.page(page)));
                true
            }
        };
        if !is_same {
            self.different.push(block);
        }
        Ok(())
    }

    fn base(&mut self, block: u64) -> Result<Page> {
        let mut page = ZERO_PAGE;
        self.blocks.read_base(block, &mut page)?;
        Ok(page)
    }
}
