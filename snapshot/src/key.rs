use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use retrovisor_guest::Page;

use crate::error::{Error, Result};

/// A keyed hash.
pub(crate) type Hash = [u8; 32];

/// The store's secret. Hashes of contents are useless without it: with plain hashes, a guest could find out whether
/// another guest of the store holds a page that it guesses.
pub(crate) struct Key {
    pages: Hash,
    records: Hash,
}

impl Key {
    /// Bytes in the key file.
    const LENGTH: usize = 32;

    /// Reads the key, or creates one for a store that has no contents yet. A file that is not a key is the remains of a
    /// crash while creating it: it is replaced. The caller syncs the directory.
    pub(crate) fn open_or_create(path: &Path) -> Result<Self> {
        if fs::metadata(path).is_ok_and(|meta| meta.len() == Self::LENGTH as u64) {
            return Self::open(path);
        }
        let secret: Hash = rand::random();
        let new = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&new).map_err(Error::io("creating the key", &new))?;
        file.set_len(0)
            .and_then(|()| file.write_all(&secret))
            .and_then(|()| file.sync_all())
            .map_err(Error::io("writing the key", &new))?;
        // It gets its name only once all of it is on the disk.
        fs::rename(&new, path).map_err(Error::io("naming the key", path))?;
        Ok(Self::new(&secret))
    }

    /// Reads the key.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(Self::LENGTH as u64 + 1).read_to_end(&mut bytes))
            .map_err(Error::io("reading the key", path))?;
        let secret = Hash::try_from(bytes).map_err(|bytes| Error::NotAStore {
            path: path.to_owned(),
            what: format!("a key has {} bytes, this file {}", Self::LENGTH, bytes.len()),
        })?;
        Ok(Self::new(&secret))
    }

    pub(crate) fn new(secret: &Hash) -> Self {
        Self {
            pages: blake3::derive_key("retrovisor 2025-11 snapshot store: contents of pages", secret),
            records: blake3::derive_key(
                "retrovisor 2025-11 snapshot store: records of the catalogue",
                secret,
            ),
        }
    }

    /// The keyed hash of a page.
    pub(crate) fn page(&self, page: &Page) -> Hash {
        *blake3::keyed_hash(&self.pages, page).as_bytes()
    }

    /// Begins the hash of a record of the catalogue; `what` is the kind of record.
    pub(crate) fn record(&self, what: &str) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_keyed(&self.records);
        hasher.update(&(what.len() as u64).to_le_bytes());
        hasher.update(what.as_bytes());
        hasher
    }

    /// Identifies the key: a store keeps this to detect a wrong one.
    pub(crate) fn check(&self) -> Hash {
        *self.record("check").finalize().as_bytes()
    }
}
