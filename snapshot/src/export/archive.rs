//! A machine's whole history as one file, to be imported into another store. Described in docs/format.md.

mod body;
mod cell;
mod import;
mod maps;
mod record;
#[cfg(test)]
mod tests;
mod write;

pub use record::ARCHIVE_MAGIC;
use serde::{Deserialize, Serialize};

use retrovisor_guest::MachineIdentity;

/// What an archive holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ArchiveReport {
    /// The machine's name.
    pub machine: String,
    /// Its checkpoints.
    pub checkpoints: u64,
    /// Contents, each 4 KiB before compression.
    pub contents: u64,
    /// Rows of all tables.
    pub rows: u64,
    /// Length of the file in bytes.
    pub length_bytes: u64,
}

/// What an archive begins with.
#[derive(Serialize, Deserialize)]
struct Manifest {
    identity: MachineIdentity,
    created_at_ms: i64,
    /// The machine's position, in the archive's numbers.
    timeline: i64,
    checkpoint: i64,
    /// Checkpoints and contents, for progress reports.
    checkpoints: u64,
    contents: u64,
}

/// What an archive ends with: how much there must have been.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    contents: u64,
    rows: u64,
    checkpoints: u64,
    disks: u64,
}
