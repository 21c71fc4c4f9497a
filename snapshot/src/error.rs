use std::io;
use std::path::{Path, PathBuf};

use retrovisor_guest::{MachineError, MemoryError};
use rusqlite::ErrorCode;

use crate::damage::Damage;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of the store failed. If there is something to do, the message says what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no store in this directory.
    #[error("there is no store in {}. Create one by running a machine with this directory, or name another directory", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
    },
    /// Another process writes to the store.
    #[error("the store {} is in use by process {}. Ask that process, or end it; reading is possible meanwhile", dir.display(), pid.map_or("of unknown id".to_owned(), |pid| pid.to_string()))]
    InUse {
        /// The store's directory.
        dir: PathBuf,
        /// The process that holds the lock, if known.
        pid: Option<u32>,
    },
    /// The store was written by a newer version of this program.
    #[error("the store {} has format {found}, this program knows up to {known}. Use the version of retrovisor that wrote it, or a newer one; nothing was changed", dir.display())]
    NewerStore {
        /// The store's directory.
        dir: PathBuf,
        /// The format found.
        found: i64,
        /// The newest format known here.
        known: i64,
    },
    /// The store is older than this program and was opened for reading only, which cannot migrate it.
    #[error("the store {} has format {found} and must be brought to {known} first. Open it once for writing (any command that changes something)", dir.display())]
    OlderStore {
        /// The store's directory.
        dir: PathBuf,
        /// The format found.
        found: i64,
        /// The format of this program.
        known: i64,
    },
    /// A file in the directory has unexpected contents.
    #[error("{} is not part of a retrovisor store: {what}", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The store was opened for reading only.
    #[error("the store {} is open for reading only", dir.display())]
    ReadOnly {
        /// The store's directory.
        dir: PathBuf,
    },
    /// The disk (or quota) is full.
    #[error("no space left on the file system of {} ({doing}). Free some space; what was stored before is safe", path.display())]
    Full {
        /// The action that failed.
        doing: &'static str,
        /// The store's directory, or the file.
        path: PathBuf,
    },
    /// The host failed an operation on a file.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// The action that failed.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Writing the catalogue failed on the disk. SQLite does not report the cause: on some file systems this is how a
    /// full disk is reported.
    #[error("the disk failed while {doing} in the catalogue {}: {source}. See that its file system has free space and can be written, and try again; checkpoints taken before are safe", path.display())]
    CatalogueDisk {
        /// The action that failed.
        doing: &'static str,
        /// The catalogue.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The catalogue failed.
    #[error("the catalogue failed while {doing}: {source}. {}", catalogue_help(source))]
    Catalogue {
        /// The action that failed.
        doing: &'static str,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// Stored bytes are damaged. They are never returned.
    #[error("{0}. Run `retrovisor verify` to see all that is touched; other checkpoints stay readable")]
    Damaged(Box<Damage>),
    /// Nothing has this name.
    #[error("{what} not found: {name}. {help}")]
    NotFound {
        /// `machine`, `checkpoint`…
        what: &'static str,
        /// The name.
        name: String,
        /// What to do.
        help: &'static str,
    },
    /// A file to be imported is invalid or damaged. Nothing was imported.
    #[error("{} cannot be imported: {what}. Nothing was imported", path.display())]
    NotReadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The caller stopped it.
    #[error("stopped. Nothing is left of it")]
    Stopped,
    /// The checkpoint was removed by retention.
    #[error(
        "checkpoint {name} (@{sequence}) was pruned and cannot be a target. `retrovisor log` lists those that are left"
    )]
    Pruned {
        /// The short id it had.
        name: String,
        /// The number it had among the machine's checkpoints.
        sequence: u64,
    },
    /// The checkpoint is damaged permanently.
    #[error(
        "checkpoint {name} is damaged and cannot be a target: {what}. `retrovisor log` lists others; a repair may recover it if the missing file is restored"
    )]
    Lost {
        /// The short id.
        name: String,
        /// What is lost.
        what: String,
    },
    /// Several checkpoints have this name.
    #[error("`{spec}` is the name of {} checkpoints: {}. Give more letters of the id", candidates.len(), candidates.join(", "))]
    Ambiguous {
        /// The ambiguous name.
        spec: String,
        /// The matching short ids, with labels.
        candidates: Vec<String>,
    },
    /// The name is taken.
    #[error("{what} {name} exists already. Choose another name")]
    Exists {
        /// `machine`…
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An argument is not usable.
    #[error("{what}: {why}")]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// There is nothing to undo or redo.
    #[error("nothing to {what} on this machine")]
    Nothing {
        /// `undo` or `redo`.
        what: &'static str,
    },
    /// A query was refused: it would write, is several statements, or accesses other files.
    #[error("query refused: {0}. Only one SELECT, WITH, EXPLAIN or PRAGMA table_info is answered")]
    QueryRefused(String),
    /// A query is wrong.
    #[error("query failed: {0}")]
    QueryFailed(String),
    /// A query took too long.
    #[error("query stopped after {limit_ms} ms. Narrow it down with WHERE or LIMIT")]
    QueryTimeout {
        /// The limit.
        limit_ms: u64,
    },
    /// The machine failed. The checkpoint or rollback was not done.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Guest memory could not be read. The checkpoint or rollback was not done.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A rollback failed after the guest was paused. The machine was reverted to the current state, and the guest
    /// continues from it.
    #[error(
        "the rollback to {target} failed: {source}. The machine was reverted to the state before it and runs on from there"
    )]
    Reverted {
        /// The short id of the target.
        target: String,
        /// The short id of the checkpoint of the current state, if it was stored before the failure.
        current: Option<String>,
        /// Why: the target could not be applied, or the current state could not be stored.
        source: Box<Error>,
    },
    /// A rollback failed, and so did reverting it. The machine stays paused.
    #[error(
        "the rollback to {target} failed: {source}; reverting to {current} failed as well: {second}. The machine stays paused. Nothing is lost: restore {current} into a new process"
    )]
    RevertFailed {
        /// The short id of the target.
        target: String,
        /// The short id of the checkpoint of the current state.
        current: String,
        /// Why the rollback failed.
        source: Box<Error>,
        /// Why reverting failed.
        second: Box<Error>,
    },
    /// A checkpoint was captured and not stored, because an earlier one failed. The next capture has its frames.
    #[error("this checkpoint was not taken: {cause}. What the guest wrote is in the next one")]
    NotStored {
        /// Why the earlier one failed.
        cause: String,
    },
    /// The checkpoint is durable, or the rollback is done, but the guest could not be resumed.
    #[error("the machine could not be resumed: {0}")]
    Resume(MachineError),
}

impl Error {
    /// Wraps a host error; a full disk becomes [`Error::Full`].
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let full =
                [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
            if full.contains(&source.kind()) {
                Self::Full { doing, path: path.to_owned() }
            } else {
                Self::Io { doing, path: path.to_owned(), source }
            }
        }
    }

    /// Wraps an error of SQLite; a full disk becomes [`Error::Full`].
    pub(crate) fn sql(doing: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { doing, path: path.to_owned() },
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
                let path = path.to_owned();
                let is_full = nix::sys::statvfs::statvfs(&path).is_ok_and(|disk| {
                    disk.blocks_available() == 0 || disk.files() > 0 && disk.files_available() == 0
                });
                if is_full { Self::Full { doing, path } } else { Self::CatalogueDisk { doing, path, source } }
            }
            _ => Self::Catalogue { doing, source },
        }
    }
}

/// What to do about a failure of the catalogue.
fn catalogue_help(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            "Its file is damaged and cannot be repaired. Machines that can still be read can be saved: \
             `retrovisor export NAME FILE --format archive`, then import them into a new store"
        }
        _ => "Run `retrovisor verify` if this persists",
    }
}
