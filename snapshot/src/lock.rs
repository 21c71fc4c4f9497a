use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};

/// The right to write to a store. The kernel releases it when the process ends, for whatever reason.
pub(crate) struct StoreLock {
    _file: Flock<File>,
}

impl StoreLock {
    /// Takes the lock, or names the process that has it.
    pub(crate) fn take(dir: &Path, path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(Error::io("opening the lock", path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                // The process id is for people only; the lock does not depend on it.
                let _ = held.set_len(0);
                let _ = held.rewind();
                let _ = writeln!(held, "{}", std::process::id());
                Ok(Self { _file: held })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let _ = file.take(32).read_to_string(&mut text);
                Err(Error::InUse { dir: dir.to_owned(), pid: text.trim().parse().ok() })
            }
            Err((_, errno)) => Err(Error::io("locking", path)(errno.into())),
        }
    }
}
