use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

use crate::error::{Error, Result};

/// The file's name in the store's directory.
const NAME: &str = "reserve";
/// The file's length, unless the file system is small.
const RESERVE_BYTES: u64 = 64 << 20;
/// It is at most one in so many bytes of the file system.
const FILE_SYSTEM_SHARE: u64 = 32;

/// A file that only occupies space, which a prune frees on a full disk: removing checkpoints changes the catalogue, and
/// so needs space before it frees any.
pub(crate) struct Reserve {
    path: PathBuf,
}

/// The reserve is free; it is made again when this is dropped, as far as there is space then.
pub(crate) struct Released<'a>(&'a Reserve);

impl Reserve {
    /// The reserve of the store in a directory. Nothing is written.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { path: dir.join(NAME) }
    }

    /// Makes it, unless it is there.
    pub(crate) fn make(&self) -> Result<()> {
        let wanted = self.wanted_bytes().map_err(Error::io("looking at the file system of", &self.path))?;
        if fs::metadata(&self.path).is_ok_and(|found| found.len() >= wanted) || wanted == 0 {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let made = options.write(true).create(true).truncate(false).mode(0o600).open(&self.path);
        let made = made.and_then(|file| {
            let length = i64::try_from(wanted).map_err(io::Error::other)?;
            posix_fallocate(&file, 0, length).map_err(io::Error::from)
        });
        made.map_err(|error| {
            // Half of it is of no use. Why it could not be made matters more than that it stays.
            let _half = fs::remove_file(&self.path);
            Error::io("keeping space in reserve in", &self.path)(error)
        })
    }

    /// Frees it if the file system has less space than that left.
    pub(crate) fn release_if_short(&self) -> Option<Released<'_>> {
        let free = self.free_bytes().ok()?;
        if free >= self.wanted_bytes().ok()? || fs::remove_file(&self.path).is_err() {
            return None;
        }
        tracing::warn!(path = %self.path.display(), "the disk is full: the space in reserve is used");
        Some(Released(self))
    }

    fn wanted_bytes(&self) -> io::Result<u64> {
        let found = statvfs(self.dir())?;
        let total = found.blocks().saturating_mul(found.fragment_size());
        Ok(RESERVE_BYTES.min(total / FILE_SYSTEM_SHARE))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = statvfs(self.dir())?;
        Ok(found.blocks_available().saturating_mul(found.fragment_size()))
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

impl Drop for Released<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.make() {
            tracing::warn!(%error, "no space is in reserve for the next prune");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_kept_while_there_is_space() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path());
        reserve.make().unwrap();
        let length = fs::metadata(&reserve.path).unwrap().len();
        assert!(length > 0 && length <= RESERVE_BYTES);
        reserve.make().unwrap();
        assert_eq!(fs::metadata(&reserve.path).unwrap().len(), length);
        if reserve.free_bytes().unwrap() >= RESERVE_BYTES {
            assert!(reserve.release_if_short().is_none());
            assert!(reserve.path.exists());
        }
        drop(Released(&reserve));
        assert!(reserve.path.exists());
    }
}
