//! Records of an archive: each carries a hash over itself and all before it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use blake3::Hash;

use crate::error::{Error, Result};
use crate::export::dump::not_importable;
use crate::export::output::Output;

/// The first bytes of an archive of a history.
pub const ARCHIVE_MAGIC: &[u8; 8] = b"RVARCHIV";
/// The format that is written, and the newest that is known.
const VERSION: u32 = 2;
const HEADER: usize = 16;
/// Kind and length of a record.
const HEAD: usize = 5;
const HASH: usize = 32;
/// Longest record that is written or read.
const RECORD_BYTES_MAX: usize = 64 << 20;
const BUFFER: usize = 1 << 20;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Manifest = 1,
    Contents = 2,
    Rows = 3,
    Origins = 4,
    Changes = 5,
    State = 6,
    End = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Changes, Contents, End, Manifest, Origins, Rows, State};
        [Manifest, Contents, Rows, Origins, Changes, State, End].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// An archive that is being written.
pub(super) struct Writer {
    output: Output,
    path: PathBuf,
    offset: u64,
    chain: Hash,
}

impl Writer {
    pub(super) fn begin(path: &Path) -> Result<Self> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(ARCHIVE_MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let mut output = Output::begin(path)?;
        output.write_at(0, &header)?;
        Ok(Self { output, path: path.to_owned(), offset: HEADER as u64, chain: blake3::hash(&header) })
    }

    pub(super) fn put(&mut self, kind: Kind, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= RECORD_BYTES_MAX);
        let length = length.ok_or_else(|| Error::Invalid {
            what: "archive",
            why: format!("a record of {} bytes for {} is too long", bytes.len(), self.path.display()),
        })?;
        let mut head = [kind as u8; HEAD];
        head[1..].copy_from_slice(&length.to_le_bytes());
        self.chain = link(&self.chain, &head, bytes);
        for part in [&head[..], bytes, self.chain.as_bytes()] {
            self.output.write_at(self.offset, part)?;
            self.offset += part.len() as u64;
        }
        Ok(())
    }

    /// Returns the length of the file in bytes.
    pub(super) fn finish(self) -> Result<u64> {
        self.output.finish(None)?;
        Ok(self.offset)
    }
}

/// An archive that is being read. A record is returned only if its hash is right.
pub(super) struct Reader<'a> {
    file: BufReader<&'a File>,
    path: &'a Path,
    left: u64,
    chain: Hash,
}

impl<'a> Reader<'a> {
    /// Begins at the start of the file.
    pub(super) fn begin(mut file: &'a File, path: &'a Path) -> Result<Self> {
        let meta = file.metadata().map_err(Error::io("measuring", path))?;
        if !meta.is_file() {
            return Err(not_importable(path, "it is not a regular file"));
        }
        file.seek(SeekFrom::Start(0)).map_err(Error::io("reading", path))?;
        let mut reader = Self {
            file: BufReader::with_capacity(BUFFER, file),
            path,
            left: meta.len(),
            chain: blake3::hash(&[]),
        };
        let mut header = [0; HEADER];
        if meta.len() < HEADER as u64 {
            return Err(not_importable(path, "it is no archive of a machine: it is too short"));
        }
        reader.fill(&mut header)?;
        if &header[..8] != ARCHIVE_MAGIC {
            return Err(not_importable(path, "it is no archive of a machine"));
        }
        let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if version > VERSION {
            let what = format!(
                "it has format {version}, and this Retrovisor knows {VERSION} at most: take the one that wrote it, or a newer one"
            );
            return Err(not_importable(path, &what));
        }
        if version == 0 || header[12..] != [0; 4] {
            return Err(not_importable(path, "its header is damaged"));
        }
        reader.chain = blake3::hash(&header);
        Ok(reader)
    }

    /// The next record; an error at the end of the file, since the last record must be the end record.
    pub(super) fn next(&mut self) -> Result<(Kind, Vec<u8>)> {
        let mut head = [0; HEAD];
        self.fill(&mut head)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let kind = Kind::from_byte(head[0]).filter(|_| length <= RECORD_BYTES_MAX);
        let kind = kind
            .ok_or_else(|| not_importable(self.path, "it is damaged: a record has no such kind or length"))?;
        if (length + HASH) as u64 > self.left {
            return Err(self.torn());
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        let mut hash = [0; HASH];
        self.fill(&mut hash)?;
        self.chain = link(&self.chain, &head, &bytes);
        if self.chain != Hash::from_bytes(hash) {
            return Err(not_importable(self.path, "it is damaged: a record is not what was written"));
        }
        if kind == Kind::End && self.left > 0 {
            return Err(not_importable(self.path, "it is damaged: it goes on after its end"));
        }
        Ok((kind, bytes))
    }

    /// The hash over all that was read.
    pub(super) fn chain(&self) -> Hash {
        self.chain
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<()> {
        if (into.len() as u64) > self.left {
            return Err(self.torn());
        }
        self.left -= into.len() as u64;
        self.file.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.torn(),
            _ => Error::io("reading", self.path)(error),
        })
    }

    fn torn(&self) -> Error {
        not_importable(self.path, "it is cut short")
    }
}

fn link(before: &Hash, head: &[u8], bytes: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before.as_bytes()).update(head).update(bytes);
    hasher.finalize()
}
