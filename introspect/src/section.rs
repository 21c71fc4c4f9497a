use std::sync::Arc;

use crate::blocks::Blocks;

/// A table of bytes: a part of a buffer in memory, or of a file that is read as needed.
#[derive(Clone)]
pub(crate) struct Section {
    source: Arc<Source>,
    start: usize,
    length: usize,
}

pub(crate) enum Source {
    Memory(Vec<u8>),
    File(Blocks),
}

impl Section {
    /// Most bytes that can be requested at once at any position.
    pub(crate) const PIECE_BYTES_MAX: usize = Blocks::SLACK_BYTES;

    /// A part of a source; `None` when the source ends before it.
    pub(crate) fn of(source: &Arc<Source>, start: usize, length: usize) -> Option<Self> {
        (start.checked_add(length)? <= source.len()).then(|| Self {
            source: Arc::clone(source),
            start,
            length,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// `length` bytes from `at` on; `None` past the end, or where a file is damaged.
    pub(crate) fn get(&self, at: usize, length: usize) -> Option<&[u8]> {
        (at.checked_add(length)? <= self.length).then_some(())?;
        match &*self.source {
            Source::Memory(bytes) => bytes.get(self.start + at..self.start + at + length),
            Source::File(blocks) => blocks.rest(self.start + at)?.get(..length),
        }
    }

    /// The bytes from `at` on: at least [`Self::PIECE_BYTES_MAX`], or fewer at the end of the section.
    pub(crate) fn rest(&self, at: usize) -> Option<&[u8]> {
        let left = self.length.checked_sub(at)?;
        let bytes = match &*self.source {
            Source::Memory(bytes) => bytes.get(self.start + at..)?,
            Source::File(blocks) => blocks.rest(self.start + at)?,
        };
        Some(&bytes[..bytes.len().min(left)])
    }

    /// The 32-bit word at an offset in bytes.
    pub(crate) fn word(&self, at: usize) -> Option<u32> {
        self.get(at, 4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// All bytes, when the table is in memory.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match &*self.source {
            Source::Memory(bytes) => bytes.get(self.start..self.start + self.length),
            Source::File(_) => None,
        }
    }

    /// Whether a part that was requested was damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        matches!(&*self.source, Source::File(blocks) if blocks.is_damaged())
    }
}

impl From<Vec<u8>> for Section {
    fn from(bytes: Vec<u8>) -> Self {
        let length = bytes.len();
        Self { source: Arc::new(Source::Memory(bytes)), start: 0, length }
    }
}

impl FromIterator<u32> for Section {
    fn from_iter<I: IntoIterator<Item = u32>>(words: I) -> Self {
        let words = words.into_iter();
        let mut bytes = Vec::with_capacity(words.size_hint().0 * 4);
        words.for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        Self::from(bytes)
    }
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File(blocks) => blocks.len(),
        }
    }
}
