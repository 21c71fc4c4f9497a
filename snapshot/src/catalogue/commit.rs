use std::collections::BTreeMap;

use retrovisor_guest::Gfn;
use rusqlite::OptionalExtension;

use super::abort::Abort;
use super::checkpoint::{self, NewCheckpoint};
use super::connection::{Catalogue, Durability};
use super::content::{self, NewContent, NewFrame};
use super::operation::{self, NewOperation};
use super::page_version::{self, Keyframe};
use super::position::Position;
use super::state::{self, StoredState};
use crate::content::ContentRef;
use crate::error::Result;
use crate::id::OperationId;

/// Everything of one checkpoint that goes into the catalogue, all at once.
pub(crate) struct Commit<'a> {
    pub(crate) checkpoint: &'a NewCheckpoint,
    pub(crate) changes: &'a [(Gfn, ContentRef)],
    pub(crate) keyframe: Option<&'a Keyframe>,
    pub(crate) state: &'a StoredState,
    pub(crate) frames: &'a [NewFrame],
    pub(crate) contents: &'a [NewContent],
    /// For each pack written to, up to where it belongs to the catalogue.
    pub(crate) packs: &'a [(u32, u64)],
}

impl Catalogue {
    /// Makes a checkpoint visible: it is wholly there and safe on the disk when this returns, or not there.
    /// `operation` is recorded with it; it is given the position of the new checkpoint.
    pub(crate) fn commit<'o>(
        &self,
        commit: &Commit<'_>,
        operation: impl FnOnce(Position) -> Option<NewOperation<'o>>,
    ) -> Result<(Position, Option<OperationId>)> {
        self.write("committing a checkpoint", Durability::Full, |transaction| {
            let mut pack = transaction.prepare_cached(
                "INSERT INTO pack (id, committed_bytes) VALUES (?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET committed_bytes = excluded.committed_bytes",
            )?;
            for (number, bytes) in commit.packs {
                pack.execute(rusqlite::params![number, bytes])?;
            }
            content::insert(transaction, commit.frames, commit.contents)?;
            let position = checkpoint::insert(transaction, commit.checkpoint)?;
            page_version::insert(transaction, position.checkpoint, commit.changes)?;
            if let Some(keyframe) = commit.keyframe {
                page_version::insert_keyframe(transaction, position.checkpoint, keyframe)?;
            }
            state::insert(transaction, position.checkpoint, commit.state)?;
            let operation = match operation(position) {
                Some(new) => Some(operation::insert(transaction, &new)?),
                None => None,
            };
            Ok((position, operation))
        })
    }

    /// Records an operation that comes without a checkpoint of its own.
    pub(crate) fn begin(&self, new: &NewOperation<'_>) -> Result<OperationId> {
        self.write("recording an operation", Durability::Full, |transaction| {
            operation::insert(transaction, new).map_err(Abort::from)
        })
    }

    /// What [`Catalogue::packs`] tells, for who goes on writing and cuts off what belongs to nobody: `there` are the
    /// packs on the disk. A pack that frames speak of belongs to the catalogue up to the end of the last of them, also
    /// when its row is lost or wrong.
    pub(crate) fn packs_in_use(&self, there: &[u32]) -> Result<Vec<(u32, u64)>> {
        let mut packs: BTreeMap<u32, u64> = self.packs()?.into_iter().collect();
        let last = packs.keys().next_back().copied();
        let unsure: Vec<u32> = there
            .iter()
            .copied()
            .filter(|number| Some(*number) == last || !packs.contains_key(number))
            .collect();
        self.read("reading the list of packs", |reader| {
            let mut statement = reader.prepare_cached(
                "SELECT offset, stored_bytes FROM frame WHERE pack = ?1 ORDER BY id DESC LIMIT 1",
            )?;
            for number in unsure {
                let end: Option<(u64, u64)> =
                    statement.query_row([number], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
                if let Some((offset, bytes)) = end {
                    let committed = packs.entry(number).or_default();
                    *committed = offset.saturating_add(bytes).max(*committed);
                }
            }
            Ok(())
        })?;
        Ok(packs.into_iter().collect())
    }

    /// Each pack's number and how many of its bytes belong to the catalogue.
    pub(crate) fn packs(&self) -> Result<Vec<(u32, u64)>> {
        self.read("reading the list of packs", |reader| {
            let mut statement = reader.prepare_cached("SELECT id, committed_bytes FROM pack ORDER BY id")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
