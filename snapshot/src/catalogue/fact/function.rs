//! `fact_value`: the SQL function by which views read volatile values.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use retrovisor_guest::fact::Value;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, Error};

use super::values::Values;
use super::volatile::Cells;
use crate::mutex::lock;

/// Bound on the rows of observations that are kept decoded, unless one alone has more. A query goes through a series
/// either by observation or by row, and then reads all its observations in turn for each row. A row takes about 150
/// bytes.
const ROWS_MAX: usize = 1 << 17;

/// Observations that were decoded, for all connections of a catalogue.
#[derive(Default)]
pub(in crate::catalogue) struct Decoded {
    /// By number. An entry is valid for the same bytes only.
    observations: HashMap<i64, Observation>,
    rows: usize,
    random: u32,
}

struct Observation {
    base: Vec<u8>,
    stored: Vec<u8>,
    values: Values,
}

/// Defines `fact_value(observation, base, stored, fact, slot, column)`: a cell of an observation, of which `stored`
/// are the volatile values and `base` those of its base, or null.
pub(in crate::catalogue) fn register(
    connection: &Connection,
    decoded: &Arc<Mutex<Decoded>>,
) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        // Views may use it although queries do not trust the schema: it computes, and does nothing else.
        | FunctionFlags::SQLITE_INNOCUOUS;
    let decoded = Arc::clone(decoded);
    connection.create_scalar_function("fact_value", 6, flags, move |context| {
        let number = context.get(0)?;
        let base = context.get_raw(1).as_blob_or_null()?.unwrap_or_default();
        let Some(stored) = context.get_raw(2).as_blob_or_null()? else { return Ok(SqlValue::Null) };
        let (fact, slot, column) = (context.get(3)?, context.get(4)?, context.get(5)?);
        let mut decoded = lock(&decoded);
        let observation = decoded.get(number, base, stored).ok_or_else(damaged)?;
        Ok(observation.cell(fact, slot, column))
    })
}

impl Decoded {
    fn get(&mut self, number: i64, base: &[u8], stored: &[u8]) -> Option<&Observation> {
        let known = self.observations.get(&number);
        if known.is_none_or(|known| known.stored != stored || known.base != base) {
            let cells = match self.observations.values().find(|other| other.base == base) {
                Some(other) => other.values.base.clone(),
                None if base.is_empty() => None,
                None => Some(Arc::new(Cells::decode(base, None)?)),
            };
            let values = Values { own: Cells::decode(stored, cells.as_deref())?, base: cells };
            self.forget(number);
            // Any others give way: when they are read in turn, the oldest would be the next that is needed.
            while self.rows + values.own.len() > ROWS_MAX && !self.observations.is_empty() {
                self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (self.random >> 8) as usize % self.observations.len();
                if let Some(other) = self.observations.keys().nth(at).copied() {
                    self.forget(other);
                }
            }
            self.rows += values.own.len();
            self.observations
                .insert(number, Observation { base: base.to_owned(), stored: stored.to_owned(), values });
        }
        self.observations.get(&number)
    }

    fn forget(&mut self, number: i64) {
        if let Some(known) = self.observations.remove(&number) {
            self.rows -= known.values.own.len();
        }
    }
}

impl Observation {
    fn cell(&self, fact: u64, slot: u32, column: usize) -> SqlValue {
        match self.values.cell(fact, slot, column) {
            None | Some(Value::Null) => SqlValue::Null,
            Some(Value::Integer(number)) => SqlValue::Integer(*number),
            Some(Value::Real(number)) => SqlValue::Real(*number),
            Some(Value::Text(text)) => SqlValue::Text(text.clone()),
        }
    }
}

fn damaged() -> Error {
    Error::UserFunctionError("the volatile values of a checkpoint's facts are damaged".into())
}
