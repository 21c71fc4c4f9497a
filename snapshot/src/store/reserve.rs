use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use crate::error::{Error, Result};
use crate::mutex::lock;

const FILE: &str = "reserve";
/// Bytes of the reserve: rewriting a pack needs up to its length, and removing rows grows the write-ahead log.
const BYTES: u64 = 160 << 20;
/// At most this share of the file system is reserved.
const SHARE: u64 = 32;
/// Opening the catalogue for writing needs this: its write-ahead log and the index of that.
const OPENING_BYTES: u64 = 4 << 20;

/// A file that keeps space on the disk for the removal of checkpoints. Without it a full disk could not be emptied,
/// because removing rows and rewriting packs writes first. While the space is lent, nothing else may be stored, so that
/// checkpoints do not use it up.
pub(crate) struct Reserve {
    dir: PathBuf,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody asked for one.
    Absent,
    /// There is too little space for it. It is made as soon as there is enough; nothing waits for that.
    Wanted,
    /// The file exists.
    Kept,
    /// The file was removed, and the removal of checkpoints that it was removed for is under way.
    Lent,
    /// The file was removed, and is made again as soon as there is space for it.
    Used,
}

impl Reserve {
    /// Looks for the reserve of the store in `dir`. If there is too little space to open its catalogue, the reserve is
    /// removed.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let mut state = if path.exists() { State::Kept } else { State::Absent };
        if state == State::Kept && available_bytes(dir)? < OPENING_BYTES {
            remove(&path)?;
            state = State::Used;
        }
        Ok(Self { dir: dir.to_owned(), path, state: Mutex::new(state) })
    }

    /// Makes the reserve, if it is not there and twice its size is available. Returns whether it is there.
    pub(crate) fn keep(&self) -> Result<bool> {
        let mut state = lock(&self.state);
        let is_kept = self.keep_in(&mut state)?;
        if *state == State::Absent {
            *state = State::Wanted;
        }
        Ok(is_kept)
    }

    fn keep_in(&self, state: &mut State) -> Result<bool> {
        if *state == State::Kept {
            return Ok(true);
        }
        let bytes = self.bytes()?;
        if *state == State::Lent || available_bytes(&self.dir)? / 2 < bytes {
            return Ok(false);
        }
        make(&self.path, bytes)?;
        *state = State::Kept;
        Ok(true)
    }

    /// Gives the space to the caller, if less than that is available. It is made again when the answer is dropped.
    pub(crate) fn lend(&self) -> Result<Lent<'_>> {
        let mut state = lock(&self.state);
        if *state == State::Kept && available_bytes(&self.dir)? < self.bytes()? {
            remove(&self.path)?;
            *state = State::Used;
        }
        if *state == State::Used {
            *state = State::Lent;
        }
        drop(state);
        Ok(Lent(self))
    }

    /// An error while the reserve is in use, or used and not made again: what is stored now would use it up.
    pub(crate) fn must_be_kept(&self) -> Result<()> {
        let mut state = lock(&self.state);
        match *state {
            State::Absent | State::Kept => Ok(()),
            State::Wanted => {
                if let Err(error) = self.keep_in(&mut state) {
                    tracing::debug!(%error, "space for the removal of checkpoints is not reserved");
                }
                Ok(())
            }
            State::Lent | State::Used => {
                if self.keep_in(&mut state)? {
                    return Ok(());
                }
                Err(Error::Full { doing: "storing a checkpoint", path: self.dir.clone() })
            }
        }
    }

    /// The size that the reserve has on this file system.
    fn bytes(&self) -> Result<u64> {
        let disk = statvfs(&self.dir).map_err(|errno| Error::io("measuring", &self.dir)(errno.into()))?;
        Ok(BYTES.min(disk.blocks().saturating_mul(disk.fragment_size()) / SHARE))
    }
}

/// The right to use the space of the reserve.
pub(crate) struct Lent<'r>(&'r Reserve);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        if *state == State::Lent {
            *state = State::Used;
            match self.0.keep_in(&mut state) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("too little space to reserve it for the next removal of checkpoints");
                }
                Err(error) => {
                    tracing::warn!(%error, "space for the next removal of checkpoints is not reserved");
                }
            }
        }
    }
}

fn available_bytes(dir: &Path) -> Result<u64> {
    let disk = statvfs(dir).map_err(|errno| Error::io("measuring", dir)(errno.into()))?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Makes the file as a whole or not at all.
fn make(path: &Path, bytes: u64) -> Result<()> {
    let failed = |source: io::Error| {
        // A part of it would be taken for the whole.
        let _ = fs::remove_file(path);
        Error::io("reserving space in", path)(source)
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let length = i64::try_from(bytes).unwrap_or(i64::MAX);
    fallocate(&file, FallocateFlags::empty(), 0, length).map_err(|errno| failed(errno.into()))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(Error::io("releasing the space of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_the_space_is_lent_nothing_else_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path()).unwrap();
        reserve.must_be_kept().unwrap();
        // Without a reserve there is nothing to lend, and nothing to wait for.
        drop(reserve.lend().unwrap());
        assert_eq!(*lock(&reserve.state), State::Absent);
        assert!(reserve.keep().unwrap(), "the disk of the tests has some space");
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().len(), reserve.bytes().unwrap());

        *lock(&reserve.state) = State::Used;
        remove(&reserve.path).unwrap();
        let lent = reserve.lend().unwrap();
        assert!(matches!(reserve.must_be_kept(), Err(Error::Full { .. })));
        assert!(!reserve.keep().unwrap(), "it is in use");
        drop(lent);
        assert!(reserve.path.exists());
        reserve.must_be_kept().unwrap();
        assert_eq!(*lock(&Reserve::open(dir.path()).unwrap().state), State::Kept);
    }

    #[test]
    fn a_used_reserve_is_made_again_by_the_next_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path()).unwrap();
        *lock(&reserve.state) = State::Used;
        reserve.must_be_kept().unwrap();
        assert!(reserve.path.exists());
    }

    #[test]
    fn a_reserve_that_is_wanted_is_made_later_and_nothing_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path()).unwrap();
        *lock(&reserve.state) = State::Wanted;
        drop(reserve.lend().unwrap());
        assert!(!reserve.path.exists());
        reserve.must_be_kept().unwrap();
        assert!(reserve.path.exists());
    }

    #[test]
    fn a_reserve_that_cannot_be_made_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(make(&path, u64::MAX).is_err());
        assert!(!path.exists());
    }
}
