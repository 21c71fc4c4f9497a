//! Facts: what introspection read from checkpoints, as tables. docs/format.md describes how they are kept.

pub(super) mod function;
mod layout;
pub(super) mod memory;
pub(super) mod plain;
mod removal;
mod series;
mod values;
mod volatile;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};
use rusqlite::{Connection, OptionalExtension, Transaction};

use self::layout::{Field, Layout, PREFIX};
use self::plain::whole;
use self::series::{Facts, Tip};
use self::values::Values;
use super::abort::Abort;
use super::connection::{Catalogue, Durability};
use super::rows::{Rows, read_rows};
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::mutex::lock;

pub(crate) use layout::FactShape;
pub(super) use plain::{adopt, plain_insert, plain_table};
pub(super) use removal::forget;

/// Longest name of a kind or column, in bytes.
const NAME_MAX: usize = 64;
/// Most columns of a kind.
const COLUMNS_MAX: usize = 200;
impl Catalogue {
    /// Records the facts of a checkpoint. Facts of the same kinds that were recorded for it before are replaced. A new
    /// kind gets a view of its name, and a view `v_<name>` that has machine and checkpoint as well; new columns are
    /// added.
    pub fn record_facts(&self, checkpoint: CheckpointId, tables: &[Table]) -> Result<()> {
        for table in tables {
            check(table)?;
        }
        // Held until the catalogue has what it says.
        let mut memory = lock(&self.facts);
        let mut layouts = memory.layouts.clone();
        let tip = self.write("keeping facts", Durability::Process, |transaction| {
            let machine = transaction
                .prepare_cached("SELECT machine FROM checkpoint WHERE id = ?1")?
                .query_row([checkpoint.0], |row| row.get(0))
                .optional()?;
            let machine = machine.ok_or_else(|| super::checkpoint::not_found(&checkpoint.to_string()))?;
            let mut facts = Vec::new();
            for table in tables {
                facts.push(facts_of(transaction, &mut layouts, table)?);
            }
            let mut tip = memory.take(machine);
            if let Some(earlier) = earlier(transaction, checkpoint, &facts)? {
                facts.extend(earlier);
                forget(transaction, &[checkpoint.0])?;
                tip = None;
            }
            let tip = match tip {
                Some(tip) => Some(tip),
                None => Tip::load(transaction, machine)?,
            };
            Tip::append(transaction, tip, (machine, checkpoint.0), &facts)
        })?;
        // Only after the commit do new kinds exist.
        memory.layouts = layouts;
        memory.put(tip);
        Ok(())
    }

    /// The facts of one kind from one checkpoint: all its columns, the oldest facts first. A kind that does not exist
    /// (yet) has no rows and no columns.
    pub fn facts(&self, checkpoint: CheckpointId, table: &str) -> Result<Rows> {
        check_name("fact table", table, true)?;
        self.read("reading facts", |reader| match layout::find(reader, table)? {
            Some(layout) => rows_of(reader, &layout, checkpoint),
            None => Ok(Rows::default()),
        })
    }

    /// The names of the kinds of facts there are.
    pub fn fact_tables(&self) -> Result<Vec<String>> {
        self.read("reading the kinds of facts", |reader| {
            let mut statement = reader.prepare_cached("SELECT name FROM fact ORDER BY name")?;
            let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(names)
        })
    }
}

/// The facts of a table, whose kind is made if needed.
fn facts_of<'t>(
    transaction: &Transaction<'_>,
    layouts: &mut HashMap<(&'static str, usize), Arc<Layout>>,
    table: &'t Table,
) -> Result<Facts<'t>, Abort> {
    let Schema { table: name, columns } = *table.schema;
    let known = layouts.get(&(name, columns.len())).map(Arc::clone);
    let layout = if let Some(layout) = known {
        layout
    } else {
        let field = |column: &Column| Field {
            name: column.name.to_owned(),
            kind: column.kind,
            keeping: column.keeping,
        };
        let layout = layout::make(transaction, name, &columns.iter().map(field).collect::<Vec<_>>())?;
        let layout = Arc::new(layout);
        layouts.retain(|(other, _), _| *other != name);
        layouts.insert((name, columns.len()), Arc::clone(&layout));
        layout
    };
    let place = |field: &Field| columns.iter().position(|column| column.name == field.name);
    let order = layout.fields.iter().map(place).collect();
    Ok(Facts { layout, order, rows: Cow::Borrowed(&table.rows) })
}

/// The facts of other kinds that a checkpoint has already; `None` if it has no facts.
fn earlier(
    reader: &Connection,
    checkpoint: CheckpointId,
    replaced: &[Facts<'_>],
) -> Result<Option<Vec<Facts<'static>>>, Abort> {
    let found = reader
        .prepare_cached("SELECT 1 FROM observation WHERE checkpoint = ?1")?
        .query_row([checkpoint.0], |_| Ok(()))
        .optional()?;
    if found.is_none() {
        return Ok(None);
    }
    let mut others = Vec::new();
    for layout in layout::all(reader)? {
        if replaced.iter().all(|facts| facts.layout.id != layout.id) {
            let rows = rows_of(reader, &layout, checkpoint)?;
            whole(&layout, &rows)?;
            let order = (0..layout.fields.len()).map(Some).collect();
            others.push(Facts { layout: Arc::new(layout), order, rows: Cow::Owned(rows.rows) });
        }
    }
    Ok(Some(others))
}

/// All rows of a kind from one checkpoint.
fn rows_of(reader: &Connection, layout: &Layout, checkpoint: CheckpointId) -> Result<Rows, Abort> {
    let stable: Vec<_> = layout.stable().collect();
    let names: Vec<_> = stable.iter().map(|at| format!(", s.\"{}\"", layout.fields[*at].name)).collect();
    let sql = format!(
        "SELECT s._slot{} FROM observation o JOIN \"{}\" s ON s._series = o.series
             AND o.checkpoint BETWEEN s._first AND ifnull(s._last, o.checkpoint)
         WHERE o.checkpoint = ?1 ORDER BY s._slot",
        names.concat(),
        layout.span()
    );
    let mut rows = read_rows(&mut *reader.prepare_cached(&sql)?, [checkpoint.0], usize::MAX)?;
    let volatile: Vec<_> = layout.volatile().collect();
    let values = if volatile.is_empty() { None } else { Values::load(reader, checkpoint.0)? };
    let fact = u64::try_from(layout.id).unwrap_or(0);
    for row in &mut rows.rows {
        let mut cells = std::mem::take(row).into_iter();
        let slot = cells.next().and_then(|slot| u32::try_from(slot.as_i64()?).ok()).unwrap_or(u32::MAX);
        *row = vec![Value::Null; layout.fields.len()];
        for (at, cell) in stable.iter().zip(cells) {
            row[*at] = cell;
        }
        for (column, at) in volatile.iter().enumerate() {
            let value = values.as_ref().and_then(|values| values.cell(fact, slot, column));
            row[*at] = value.cloned().unwrap_or(Value::Null);
        }
    }
    rows.columns = layout.fields.iter().map(|field| field.name.clone()).collect();
    Ok(rows)
}

/// The kinds of facts there are, each with its columns.
pub(super) fn shapes(reader: &Connection) -> Result<Vec<FactShape>, Abort> {
    let shape = |layout: Layout| {
        (layout.table, layout.fields.into_iter().map(|field| (field.name, field.kind)).collect())
    };
    Ok(layout::all(reader)?.into_iter().map(shape).collect())
}

/// Selects all facts of a kind of a machine (parameter 1): the checkpoint and the cells, by checkpoint.
pub(super) fn select_of_machine(reader: &Connection, table: &str) -> Result<String, Abort> {
    let Some(layout) = layout::find(reader, table)? else {
        return Err(Error::Invalid { what: "fact table", why: format!("there is no {table}") }.into());
    };
    let (cells, from) = layout.select();
    Ok(format!(
        "SELECT o.checkpoint, {} FROM {from}
         WHERE o.checkpoint IN (SELECT id FROM checkpoint WHERE machine = ?1) ORDER BY o.checkpoint, s._slot",
        cells.join(", ")
    ))
}

fn check(table: &Table) -> Result<()> {
    let schema = table.schema;
    check_shape(schema.table, &columns_of(schema))?;
    for row in &table.rows {
        if row.len() != schema.columns.len() {
            let why =
                format!("a row of {} has {} cells, not {}", schema.table, row.len(), schema.columns.len());
            return Err(Error::Invalid { what: "fact row", why });
        }
        for (column, value) in schema.columns.iter().zip(row) {
            if !fits(column.kind, value) {
                let why = format!("{}.{} is {:?}, got {value:?}", schema.table, column.name, column.kind);
                return Err(Error::Invalid { what: "fact row", why });
            }
        }
    }
    Ok(())
}

fn columns_of(schema: &Schema) -> Vec<(&'static str, Kind)> {
    schema.columns.iter().map(|column| (column.name, column.kind)).collect()
}

/// Whether a column of this kind can hold the value.
pub(super) fn fits(kind: Kind, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Integer(_) => kind == Kind::Integer,
        Value::Real(_) => kind == Kind::Real,
        Value::Text(_) => kind == Kind::Text,
    }
}

/// Checks the names of a table and its columns.
pub(super) fn check_shape(table: &str, columns: &[(&str, Kind)]) -> Result<()> {
    check_name("fact table", table, true)?;
    let mut names = HashSet::from(["checkpoint"]);
    for (name, _) in columns {
        check_name("fact column", name, false)?;
        if !names.insert(name) {
            let why = format!("{name} is there twice or means something else in {table}");
            return Err(Error::Invalid { what: "fact column", why });
        }
    }
    if columns.is_empty() || columns.len() > COLUMNS_MAX {
        let why = format!("{table} has {} columns, not 1 to {COLUMNS_MAX}", columns.len());
        return Err(Error::Invalid { what: "fact table", why });
    }
    Ok(())
}

fn check_name(what: &'static str, name: &str, is_table: bool) -> Result<()> {
    let fits = name.len() <= NAME_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && (!is_table || name.len() > PREFIX.len() && name.starts_with(PREFIX));
    if fits {
        return Ok(());
    }
    let prefix = if is_table { ", beginning with fact_" } else { "" };
    let why = format!("{name:?} is not lower snake case of at most {NAME_MAX} letters and digits{prefix}");
    Err(Error::Invalid { what, why })
}
