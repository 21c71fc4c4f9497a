use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// The data of a file. A block is read, and its check compared, when it is first needed.
pub(crate) struct Blocks {
    file: File,
    /// Offset of the data in the file.
    data_at: u64,
    length: usize,
    checks: Vec<u64>,
    /// The blocks read so far; `None` for a damaged one.
    read: Vec<OnceLock<Option<Box<[u8]>>>>,
    damaged: AtomicBool,
}

impl Blocks {
    const BLOCK_BYTES: usize = 4096;
    /// Bytes that are read beyond the end of a block, so that an item that begins in the block and is at most this long
    /// is contiguous.
    pub(crate) const SLACK_BYTES: usize = 512;

    /// `checks` are the results of [`Self::checks_of`] for the data.
    pub(crate) fn new(file: File, data_at: u64, length: usize, checks: Vec<u64>) -> Option<Self> {
        (checks.len() == Self::count(length)).then(|| Self {
            file,
            data_at,
            length,
            read: (0..checks.len()).map(|_| OnceLock::new()).collect(),
            checks,
            damaged: AtomicBool::new(false),
        })
    }

    /// Number of blocks in `length` bytes.
    pub(crate) fn count(length: usize) -> usize {
        length.div_ceil(Self::BLOCK_BYTES)
    }

    /// The check value of each block of some data.
    pub(crate) fn checks_of(data: &[u8]) -> impl Iterator<Item = u64> {
        (0..data.len()).step_by(Self::BLOCK_BYTES).map(|at| check(&data[at..Self::end(at, data.len())]))
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// The bytes from `at` on: at least [`Self::SLACK_BYTES`], or fewer at the end of the data.
    pub(crate) fn rest(&self, at: usize) -> Option<&[u8]> {
        let block = self.read.get(at / Self::BLOCK_BYTES)?;
        let load = || {
            let bytes = self.load(at / Self::BLOCK_BYTES);
            if bytes.is_none() {
                self.damaged.store(true, Ordering::Relaxed);
            }
            bytes
        };
        block.get_or_init(load).as_deref()?.get(at % Self::BLOCK_BYTES..)
    }

    fn load(&self, number: usize) -> Option<Box<[u8]>> {
        let start = number * Self::BLOCK_BYTES;
        let mut bytes = vec![0; Self::end(start, self.length) - start].into_boxed_slice();
        self.file.read_exact_at(&mut bytes, self.data_at.checked_add(start as u64)?).ok()?;
        (Some(&check(&bytes)) == self.checks.get(number)).then_some(bytes)
    }

    fn end(start: usize, length: usize) -> usize {
        length.min(start + Self::BLOCK_BYTES + Self::SLACK_BYTES)
    }
}

/// Detects accidental damage. It does not protect against deliberate changes, since whoever changes the data can also
/// change the check.
fn check(bytes: &[u8]) -> u64 {
    blake3::hash(bytes).as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}
