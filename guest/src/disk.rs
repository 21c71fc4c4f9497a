use serde::{Deserialize, Serialize};

use crate::{MachineError, PAGE_SIZE, Page};

/// Bytes in a block of a disk: those of a page, so that one store keeps both, and a block that is in the guest's
/// page cache is kept once.
pub const BLOCK_SIZE: usize = PAGE_SIZE;

/// Most blocks in a [`BlockRun`] with data: 1 MiB.
pub const RUN_BLOCKS_MAX: u64 = 256;

/// A writable disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskShape {
    /// Its name in the machine: `d0`.
    pub name: String,
    /// Its size in bytes, as the guest sees it. The last block may be cut off by it.
    pub size_bytes: u64,
    /// What it was before the guest wrote to it; none for a disk that began with zeros.
    pub base: Option<DiskBase>,
}

/// The image that a disk began as: it is only read, is no part of any checkpoint, and must not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBase {
    /// The image, and its backing images in turn.
    pub files: Vec<BaseFile>,
}

/// A file of a base image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFile {
    /// Its path then. A file that was moved is the same one.
    pub path: String,
    /// Its length in bytes.
    pub length_bytes: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl DiskShape {
    /// Blocks of the disk, the last one counted whole.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_SIZE as u64)
    }
}

impl DiskBase {
    /// Why `found` is not this base, as a sentence; `None` when it is.
    ///
    /// Length and time of every file must agree: contents are not compared, which would read whole images at
    /// every start. A copy keeps its time with `cp -p`; one that lost the fractions of a second is accepted.
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
    /// What the base image has there.
    Base,
    /// The bytes. Past the end of the disk they are zero.
    Data(&'a Page),
}

/// The content of the blocks of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunContent {
    /// Zeros.
    Zero,
    /// What the base image has there.
    Base,
    /// Bytes, which came with the run; some blocks may still be zero.
    Data,
}

/// Blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The first block.
    pub first: u64,
    /// Number of blocks; [`RUN_BLOCKS_MAX`] at most when they hold data.
    pub count: u64,
    /// Their content.
    pub content: RunContent,
}

/// The blocks of a disk that may differ between two captured states, to be read while the guest runs on. What it reads
/// must stay until it is dropped: neither state may be released before.
pub trait DiskChanges: Send {
    /// The next run, ascending; `None` at the end. With data, `bytes` is filled with whole blocks
    /// (`count` × [`BLOCK_SIZE`]); otherwise it is emptied. May name blocks that did not change, never leave out one
    /// that did.
    fn next_run(&mut self, bytes: &mut Vec<u8>) -> Result<Option<BlockRun>, MachineError>;
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
        // A copy by a tool that keeps whole seconds.
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
