use std::fmt::Write;

use retrovisor_guest::PAGE_SIZE;

use crate::{image::ImageRange, pages::Pages};

/// The parts of a kernel's image that determine its symbols and types: offsets from the image's first byte, and
/// lengths, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extents {
    /// kallsyms' names, markers and tokens; nothing in it is an address.
    pub(crate) tables: (u64, u64),
    /// The symbols' offsets.
    pub(crate) offsets: (u64, u64),
    /// Where the base address of the offsets is stored, if there is one: it moves with the kernel.
    pub(crate) base_at: Option<u64>,
    /// The types.
    pub(crate) types: (u64, u64),
}

/// A hash of those bytes and their places. Equal fingerprints mean equal symbols, up to the KASLR slide, and equal
/// types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) [u8; 32]);

/// Bytes read at once: the buffer stays in the processor's cache.
const PIECE_BYTES: usize = 256 << 10;
/// Bound on the bytes that are read for one fingerprint.
const BYTES_MAX: u64 = 128 << 20;

impl Fingerprint {
    /// Reads and hashes all parts. `None` when they are not in the image, or cannot be read.
    pub(crate) fn of(pages: &Pages, image: &ImageRange, extents: &Extents) -> Option<Self> {
        let parts = [extents.tables, extents.offsets, extents.types];
        let total = parts.iter().try_fold(0_u64, |sum, (_, length)| sum.checked_add(*length));
        total.filter(|total| *total <= BYTES_MAX)?;
        let mut hasher = blake3::Hasher::new();
        let mut words = |words: [u64; 2]| {
            for word in words {
                hasher.update(&word.to_le_bytes());
            }
        };
        for (start, length) in parts {
            words([start, length]);
        }
        match extents.base_at {
            Some(at) => {
                let mut word = [0; 8];
                read(pages, image, at, &mut word)?;
                words([at, u64::from_le_bytes(word).wrapping_sub(image.virt)]);
            }
            None => words([u64::MAX, 0]),
        }
        let mut buffer = vec![0; PIECE_BYTES];
        for (start, length) in parts {
            let end = start.checked_add(length)?;
            let mut at = start;
            while at < end {
                // All pieces but the first begin at a page boundary.
                let rest = PIECE_BYTES as u64 - at % PAGE_SIZE as u64;
                let piece = buffer.get_mut(..usize::try_from(rest.min(end - at)).ok()?)?;
                read(pages, image, at, piece)?;
                hasher.update(piece);
                at += piece.len() as u64;
            }
        }
        Some(Self(*hasher.finalize().as_bytes()))
    }

    /// The same of the first page alone: rules out most other kernels without reading everything.
    pub(crate) fn of_first(pages: &Pages, image: &ImageRange, extents: &Extents) -> Option<u64> {
        let mut page = [0; PAGE_SIZE];
        let length = usize::try_from(extents.tables.1).ok()?.min(PAGE_SIZE);
        read(pages, image, extents.tables.0, &mut page[..length])?;
        blake3::hash(&page).as_bytes().first_chunk().map(|first| u64::from_le_bytes(*first))
    }

    /// The fingerprint as the name of a file.
    pub(crate) fn name(&self) -> String {
        self.0.iter().take(16).fold(String::new(), |mut name, byte| {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        })
    }
}

fn read(pages: &Pages, image: &ImageRange, at: u64, into: &mut [u8]) -> Option<()> {
    (at.checked_add(into.len() as u64)? <= image.bytes).then_some(())?;
    pages.read_bytes(image.gpa.checked_add(at)?, into)
}
