use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{MachineError, PAGE_SIZE, Page};

/// Size of a block of a disk. It equals that of a page, so that a store can keep both, and a block that is also in the
/// guest's page cache is stored once.
pub const BLOCK_SIZE: usize = PAGE_SIZE;

/// Bound on the blocks in a [`BlockRun`] with data: 1 MiB.
pub const RUN_BLOCKS_MAX: u64 = 256;

/// A writable disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskShape {
    /// Its name in the machine: `d0`.
    pub name: String,
    /// Its size in bytes, as the guest sees it. It may end within the last block.
    pub size_bytes: u64,
    /// Its contents before the guest wrote to it; `None` for zeros.
    pub base: Option<DiskBase>,
}

/// The image from which a disk was started: it is never written, is not part of any checkpoint, and must not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBase {
    /// The image, and its backing images in turn.
    pub files: Vec<BaseFile>,
}

/// A file of a base image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFile {
    /// Its path at that time. A file that was moved is the same one.
    pub path: String,
    /// Its length in bytes.
    pub length_bytes: u64,
    /// Time of last modification, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl DiskShape {
    /// Number of blocks of the disk, including a partial last one.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_SIZE as u64)
    }
}

impl DiskBase {
    /// Why `found` is not this base, as a sentence; `None` if it is.
    ///
    /// Length and time of last modification of every file must be equal. Contents are not compared, since that would
    /// read whole images at every start. `cp -p` keeps the time of a copy; one without the fractions of a second is
    /// accepted.
    #[must_use]
    pub fn differs(&self, found: &Self) -> Option<String> {
        if self.files.len() != found.files.len() {
            return Some(format!(
                "the image is based on {} other files, {} at the checkpoint",
                found.files.len().saturating_sub(1),
                self.files.len().saturating_sub(1)
            ));
        }
        self.files.iter().zip(&found.files).find_map(|(was, is)| {
            let second = 1_000_000_000;
            let whole = was.modified_ns % second == 0 || is.modified_ns % second == 0;
            let same_time = was.modified_ns == is.modified_ns
                || whole && was.modified_ns.div_euclid(second) == is.modified_ns.div_euclid(second);
            if was.length_bytes != is.length_bytes {
                Some(format!("{} has {} bytes, {} at the checkpoint", is.path, is.length_bytes, was.length_bytes))
            } else if same_time {
                None
            } else {
                Some(format!(
                    "{} was written since (at {}.{:09} s, at the checkpoint {}.{:09}); if it is a copy of the same image, \
                     give it its time back: touch -d @{}.{:09} {}",
                    is.path,
                    is.modified_ns.div_euclid(second),
                    is.modified_ns.rem_euclid(second),
                    was.modified_ns.div_euclid(second),
                    was.modified_ns.rem_euclid(second),
                    was.modified_ns.div_euclid(second),
                    was.modified_ns.rem_euclid(second),
                    is.path
                ))
            }
        })
    }
}

/// The content of a block of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockContent<'a> {
    /// All bytes are zero.
    Zero,
    /// The contents of the base image.
    Base,
    /// The bytes; zero past the end of the disk.
    Data(&'a Page),
}

/// The content of the blocks of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunContent {
    /// Zeros.
    Zero,
    /// The contents of the base image.
    Base,
    /// The bytes that were returned with the run; some blocks may still be zero.
    Data,
}

/// Consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The first block.
    pub first: u64,
    /// Number of blocks; at most [`RUN_BLOCKS_MAX`] with data.
    pub count: u64,
    /// Their content.
    pub content: RunContent,
}

/// The blocks of a disk that may differ between two captured states, read while the guest runs. Neither state may be
/// released before this is dropped.
pub trait DiskChanges: Send {
    /// The next run, ascending; `None` at the end. With data, `bytes` is filled with whole blocks (`count` ×
    /// [`BLOCK_SIZE`]); otherwise it is emptied. May include blocks that did not change, but never omits one that did.
    fn next_run(&mut self, bytes: &mut Vec<u8>) -> Result<Option<BlockRun>, MachineError>;
}

/// The blocks of a disk in a captured state, read while the guest runs. The state may not be released before this is
/// dropped.
pub trait DiskBlocks: Send {
    /// Reads ranges of blocks, which are on the disk and have at most [`RUN_BLOCKS_MAX`] each, in this order: until
    /// `data_max` blocks with data were read, to the end of that range. Returns the runs that make up these ranges.
    /// `bytes` is filled with the whole blocks of those with data, one run after another.
    ///
    /// What is returned does not depend on which blocks the driver takes for changed.
    fn read(
        &mut self,
        ranges: &[Range<u64>],
        data_max: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Vec<BlockRun>, MachineError>;

    /// Reads a block of the base image; zeros where it has none.
    fn read_base(&mut self, block: u64, into: &mut Page) -> Result<(), MachineError>;
}

impl BlockRun {
    /// What [`DiskBlocks::read`] returns, of a driver that reads one range after another: `read` appends the runs of a
    /// range, and the bytes of those with data.
    pub fn of_ranges(
        ranges: &[Range<u64>],
        data_max: u64,
        bytes: &mut Vec<u8>,
        mut read: impl FnMut(&Range<u64>, &mut Vec<Self>, &mut Vec<u8>) -> Result<(), MachineError>,
    ) -> Result<Vec<Self>, MachineError> {
        bytes.clear();
        let mut runs = Vec::new();
        for range in ranges {
            read(range, &mut runs, bytes)?;
            if (bytes.len() / BLOCK_SIZE) as u64 >= data_max {
                break;
            }
        }
        Ok(runs)
    }

    /// Appends consecutive blocks to `runs`: to the last one, if they continue it.
    pub fn append(runs: &mut Vec<Self>, first: u64, count: u64, content: RunContent) {
        match runs.last_mut() {
            Some(last) if last.content == content && last.first + last.count == first => last.count += count,
            _ => runs.push(Self { first, count, content }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(files: &[(&str, u64, i64)]) -> DiskBase {
        let file = |(path, length_bytes, modified_ns): &(&str, u64, i64)| BaseFile {
            path: (*path).into(),
            length_bytes: *length_bytes,
            modified_ns: *modified_ns,
        };
        DiskBase { files: files.iter().map(file).collect() }
    }

    #[test]
    fn a_base_is_known_by_length_and_time() {
        let was = base(&[("/a", 9, 5_000_000_001), ("/b", 7, 1)]);
        assert_eq!(was.differs(&base(&[("/elsewhere", 9, 5_000_000_001), ("/b", 7, 1)])), None);
        // As after a copy by a tool that keeps only whole seconds.
        assert_eq!(was.differs(&base(&[("/a", 9, 5_000_000_000), ("/b", 7, 0)])), None);
        for (other, word) in [
            (base(&[("/a", 10, 5_000_000_001), ("/b", 7, 1)]), "has 10 bytes"),
            (base(&[("/a", 9, 5_000_000_001), ("/b", 7, 2)]), "was written since"),
            (base(&[("/a", 9, 6_000_000_000), ("/b", 7, 1)]), "touch -d @5.000000001 /a"),
            (base(&[("/a", 9, 5_000_000_001)]), "is based on 0 other files"),
        ] {
            let why = was.differs(&other).unwrap();
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn the_last_block_counts_whole() {
        assert_eq!(DiskShape { name: "d0".into(), size_bytes: 4097, base: None }.blocks(), 2);
    }
}
