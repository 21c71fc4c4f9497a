use rusqlite::{OptionalExtension, Transaction, params};

use super::abort::Abort;
use super::connection::Catalogue;
use crate::error::Result;
use crate::id::CheckpointId;
use crate::key::Hash;

/// A machine state as stored: everything but memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredState {
    /// Registers: JSON.
    pub(crate) vcpus: String,
    /// Disks: JSON.
    pub(crate) disks: String,
    /// The driver's sections.
    pub(crate) sections: Vec<StoredSection>,
    /// Over all of the above.
    pub(crate) hash: Hash,
}

/// A section as stored: 4-KiB pieces in the packs, the last one filled up with zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredSection {
    pub(crate) format: String,
    pub(crate) length_bytes: u64,
    /// The pieces, as a list of contents.
    pub(crate) contents: Vec<u8>,
}

impl Catalogue {
    /// The state at a checkpoint, if it is there.
    pub(crate) fn stored_state(&self, checkpoint: CheckpointId) -> Result<Option<StoredState>> {
        self.read("reading a machine state", |reader| {
            let state = reader
                .prepare_cached("SELECT vcpus, disks, hash FROM state WHERE checkpoint = ?1")?
                .query_row([checkpoint.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            let Some((vcpus, disks, hash)) = state else { return Ok(None) };
            let sections = reader
                .prepare_cached(
                    "SELECT format, length_bytes, contents FROM section WHERE checkpoint = ?1 ORDER BY ordinal",
                )?
                .query_map([checkpoint.0], |row| {
                    Ok(StoredSection { format: row.get(0)?, length_bytes: row.get(1)?, contents: row.get(2)? })
                })?
                .collect::<Result<_, _>>()?;
            Ok(Some(StoredState { vcpus, disks, sections, hash }))
        })
    }
}

/// Adds the state at a checkpoint.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    checkpoint: CheckpointId,
    state: &StoredState,
) -> Result<(), Abort> {
    transaction
        .prepare_cached("INSERT INTO state (checkpoint, vcpus, disks, hash) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![checkpoint.0, state.vcpus, state.disks, state.hash])?;
    let mut add = transaction.prepare_cached(
        "INSERT INTO section (checkpoint, ordinal, format, length_bytes, contents) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (ordinal, section) in state.sections.iter().enumerate() {
        add.execute(params![checkpoint.0, ordinal, section.format, section.length_bytes, section.contents])?;
    }
    Ok(())
}
