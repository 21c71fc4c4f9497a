use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use super::fingerprint::{Extents, Fingerprint};
use crate::{
    blocks::Blocks,
    btf::Types,
    image::ImageRange,
    section::{Section, Source},
    symbols::Symbols,
};

/// A file of the library: a header, a check for each block of the data, then the tables of symbols and types. Numbers
/// in the header are 64-bit little-endian words; the tables hold 32-bit words.
pub(super) struct Entry;

/// How much of an entry is read at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loading {
    /// All of it; it is checked before it is used.
    Whole,
    /// The header; blocks are read and checked when they are needed. `is_damaged` then tells whether a check failed.
    Lazy,
}

/// The header of a file.
pub(super) struct Header {
    words: [u64; WORDS],
    checks: Vec<u64>,
}

/// The eighth byte counts the versions of this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"RVKERNL\x01");
const SECTIONS: usize = 12;

// Indexes of words in the header. The header begins with the hash of everything after it up to the data.
const MAGIC_AT: usize = 0;
const FIRST_AT: usize = 1;
const FINGERPRINT_AT: usize = 2;
const TABLES_AT: usize = 6;
const OFFSETS_AT: usize = 8;
const TYPES_AT: usize = 10;
const BASE_AT: usize = 12;
/// The base of the symbols, relative to the image.
const SYMBOLS_BASE_AT: usize = 13;
const DATA_HASH_AT: usize = 14;
const DATA_BYTES_AT: usize = 18;
/// Start in the data and length of each table.
const SECTIONS_AT: usize = 19;
const WORDS: usize = SECTIONS_AT + 2 * SECTIONS;

const HASH_BYTES: usize = 32;
const HEADER_BYTES: usize = HASH_BYTES + WORDS * 8;
/// Alignment of tables.
const ALIGN: usize = 64;

impl Header {
    /// `None` when it is damaged, of another version, or larger than permitted.
    pub(super) fn read(file: &File, bytes_max: u64) -> io::Result<Option<Self>> {
        let length = file.metadata()?.len();
        if length < HEADER_BYTES as u64 || length > bytes_max {
            return Ok(None);
        }
        let mut head = vec![0; HEADER_BYTES];
        file.read_exact_at(&mut head, 0)?;
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(head[HASH_BYTES..].as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let header = Self { words, checks: Vec::new() };
        let count = usize::try_from(header.word(DATA_BYTES_AT)).ok().map(Blocks::count);
        let whole = count
            .and_then(|count| header.word(DATA_BYTES_AT).checked_add(Self::bytes(count)))
            .is_some_and(|whole| whole == length);
        let Some(count) = count.filter(|_| whole && header.word(MAGIC_AT) == MAGIC) else { return Ok(None) };
        head.resize(HEADER_BYTES + count * 8, 0);
        file.read_exact_at(&mut head[HEADER_BYTES..], HEADER_BYTES as u64)?;
        if blake3::hash(&head[HASH_BYTES..]).as_bytes() != &head[..HASH_BYTES] {
            return Ok(None);
        }
        let checks = head[HEADER_BYTES..].as_chunks::<8>().0;
        Ok(Some(Self { checks: checks.iter().map(|check| u64::from_le_bytes(*check)).collect(), ..header }))
    }

    /// Bytes before the data.
    fn bytes(checks: usize) -> u64 {
        (HEADER_BYTES + checks * 8) as u64
    }

    fn word(&self, at: usize) -> u64 {
        self.words[at]
    }

    pub(super) fn first(&self) -> u64 {
        self.word(FIRST_AT)
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.hash(FINGERPRINT_AT))
    }

    fn hash(&self, at: usize) -> [u8; HASH_BYTES] {
        let mut hash = [0; HASH_BYTES];
        for (bytes, word) in hash.as_chunks_mut::<8>().0.iter_mut().zip(&self.words[at..]) {
            *bytes = word.to_le_bytes();
        }
        hash
    }

    fn pair(&self, at: usize) -> (u64, u64) {
        (self.word(at), self.word(at + 1))
    }

    pub(super) fn extents(&self) -> Extents {
        let base_at = self.word(BASE_AT);
        Extents {
            tables: self.pair(TABLES_AT),
            offsets: self.pair(OFFSETS_AT),
            types: self.pair(TYPES_AT),
            base_at: (base_at != u64::MAX).then_some(base_at),
        }
    }
}

impl Entry {
    /// The tables after a header, for the kernel with this image; `None` when they are damaged.
    pub(super) fn open(
        file: File,
        header: &Header,
        image: &ImageRange,
        loading: Loading,
    ) -> io::Result<Option<(Symbols, Types)>> {
        let Ok(length) = usize::try_from(header.word(DATA_BYTES_AT)) else { return Ok(None) };
        let data_at = Header::bytes(header.checks.len());
        let source = match loading {
            Loading::Lazy => Blocks::new(file, data_at, length, header.checks.clone()).map(Source::File),
            Loading::Whole => {
                // The file's length agreed with the header.
                let mut data = vec![0; length];
                file.read_exact_at(&mut data, data_at)?;
                let right = blake3::hash(&data).as_bytes() == &header.hash(DATA_HASH_AT);
                right.then_some(Source::Memory(data))
            }
        };
        Ok(source.and_then(|source| Self::tables(&Arc::new(source), header, image)))
    }

    fn tables(source: &Arc<Source>, header: &Header, image: &ImageRange) -> Option<(Symbols, Types)> {
        let section = |number: usize| {
            let (start, length) = header.pair(SECTIONS_AT + number * 2);
            Section::of(source, usize::try_from(start).ok()?, usize::try_from(length).ok()?)
        };
        let mut sections = Vec::with_capacity(SECTIONS);
        for number in 0..SECTIONS {
            sections.push(section(number)?);
        }
        let types = sections.split_off(5);
        let base = header.word(SYMBOLS_BASE_AT).wrapping_add(image.virt);
        let symbols = Symbols::from_sections(base, sections.try_into().ok()?)?;
        Some((symbols, Types::from_sections(types.try_into().ok()?)?))
    }

    /// The bytes of a file; `None` for tables that are not completely in memory.
    pub(super) fn write(
        image: &ImageRange,
        extents: &Extents,
        (fingerprint, first): (&Fingerprint, u64),
        symbols: &Symbols,
        types: &Types,
    ) -> Option<Vec<u8>> {
        let (base, symbol_sections) = symbols.sections();
        let mut words = [0; WORDS];
        let mut data = Vec::new();
        for (number, section) in symbol_sections.into_iter().chain(types.sections()).enumerate() {
            data.resize(data.len().next_multiple_of(ALIGN), 0);
            let place = &mut words[SECTIONS_AT + number * 2..][..2];
            place.copy_from_slice(&[data.len() as u64, section.len() as u64]);
            data.extend_from_slice(section.bytes()?);
        }
        words[MAGIC_AT] = MAGIC;
        words[FIRST_AT] = first;
        let data_hash = *blake3::hash(&data).as_bytes();
        for (at, hash) in [(FINGERPRINT_AT, fingerprint.0), (DATA_HASH_AT, data_hash)] {
            for (word, bytes) in words[at..].iter_mut().zip(hash.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        let pairs = [(TABLES_AT, extents.tables), (OFFSETS_AT, extents.offsets), (TYPES_AT, extents.types)];
        for (at, (start, length)) in pairs {
            words[at..at + 2].copy_from_slice(&[start, length]);
        }
        words[BASE_AT] = extents.base_at.unwrap_or(u64::MAX);
        words[SYMBOLS_BASE_AT] = base.wrapping_sub(image.virt);
        words[DATA_BYTES_AT] = data.len() as u64;
        let mut bytes = vec![0; HASH_BYTES];
        bytes.extend(words.into_iter().chain(Blocks::checks_of(&data)).flat_map(u64::to_le_bytes));
        let hash = blake3::hash(&bytes[HASH_BYTES..]);
        bytes[..HASH_BYTES].copy_from_slice(hash.as_bytes());
        bytes.extend_from_slice(&data);
        Some(bytes)
    }
}

/// Bytes before the data of a valid entry.
#[cfg(test)]
pub(super) fn head_bytes(bytes: &[u8]) -> usize {
    let at = HASH_BYTES + DATA_BYTES_AT * 8;
    let length = u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    bytes.len() - usize::try_from(length).unwrap()
}

/// Corrects the checks of a forged entry: that of the header, and those of the data if they were changed.
#[cfg(test)]
pub(super) fn seal(bytes: &mut [u8], head: usize, data_too: bool) {
    if data_too {
        let checks: Vec<u8> = Blocks::checks_of(&bytes[head..]).flat_map(u64::to_le_bytes).collect();
        bytes[HEADER_BYTES..head].copy_from_slice(&checks);
        let hash = blake3::hash(&bytes[head..]);
        bytes[HASH_BYTES + DATA_HASH_AT * 8..][..HASH_BYTES].copy_from_slice(hash.as_bytes());
    }
    let hash = blake3::hash(&bytes[HASH_BYTES..head]);
    bytes[..HASH_BYTES].copy_from_slice(hash.as_bytes());
}
