//! The volatile values of an observation.

use std::sync::Arc;

use retrovisor_guest::fact::Value;
use rusqlite::{Connection, OptionalExtension};

use super::super::abort::Abort;
use super::volatile::Cells;
use crate::damage::Damage;
use crate::error::Error;

/// The volatile values of an observation: its own cells, and those of its base where it has none.
pub(super) struct Values {
    pub(super) base: Option<Arc<Cells>>,
    pub(super) own: Cells,
}

impl Values {
    /// Those of a checkpoint's observation; `None` if it has none.
    pub(super) fn load(reader: &Connection, checkpoint: i64) -> Result<Option<Self>, Abort> {
        let found: Option<(Option<Vec<u8>>, Vec<u8>)> = reader
            .prepare_cached(
                "SELECT b.volatile, o.volatile FROM observation o LEFT JOIN observation b ON b.id = o.base
                 WHERE o.checkpoint = ?1",
            )?
            .query_row([checkpoint], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((base, own)) = found else { return Ok(None) };
        let decode = || {
            let base = match base {
                Some(stored) => Some(Arc::new(Cells::decode(&stored, None)?)),
                None => None,
            };
            Some(Self { own: Cells::decode(&own, base.as_deref())?, base })
        };
        decode().map(Some).ok_or_else(|| damaged().into())
    }

    /// A cell; null if neither has it.
    pub(super) fn cell(&self, fact: u64, slot: u32, column: usize) -> Option<&Value> {
        self.own.cell(fact, slot, column).or_else(|| self.base.as_ref()?.cell(fact, slot, column))
    }
}

/// The stored bytes cannot be decoded.
pub(super) fn damaged() -> Error {
    Error::Damaged(Box::new(Damage::catalogue("the volatile values of a checkpoint's facts".to_owned())))
}
