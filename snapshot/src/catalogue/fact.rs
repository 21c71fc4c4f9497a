use std::collections::HashSet;

use retrovisor_guest::fact::{Kind, Schema, Table, Value};
use rusqlite::{OptionalExtension, Transaction, params_from_iter};

use super::abort::Abort;
use super::connection::{Catalogue, Durability, lock};
use super::query::{Cell, Rows, read_rows};
use crate::error::{Error, Result};
use crate::id::CheckpointId;

/// Fact tables begin with this.
const PREFIX: &str = "fact_";
/// Longest name of a table or column, in bytes.
const NAME_MAX: usize = 64;
/// Most columns of a fact table.
const COLUMNS_MAX: usize = 200;
const TABLES: &str =
    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'fact_*' ORDER BY name";

/// The name of a fact table, and names and kinds of its columns after `checkpoint`.
pub(crate) type FactShape = (String, Vec<(String, Kind)>);

impl Catalogue {
    /// Stores the facts of a checkpoint: one table for each schema, one row for each fact. Facts of the same kind that
    /// were recorded for this checkpoint before are replaced. A new schema creates its table, and a view `v_<table>`
    /// that names machine and checkpoint; new columns are added to an existing table.
    pub fn record_facts(&self, checkpoint: CheckpointId, tables: &[Table]) -> Result<()> {
        for table in tables {
            check(table)?;
        }
        self.write("keeping facts", Durability::Process, |transaction| {
            let known = transaction
                .prepare_cached("SELECT 1 FROM checkpoint WHERE id = ?1")?
                .query_row([checkpoint.0], |_| Ok(()))
                .optional()?;
            known.ok_or_else(|| super::checkpoint::not_found(&checkpoint.to_string()))?;
            for table in tables {
                let name = table.schema.table;
                let shape = (name, table.schema.columns.len());
                if !lock(&self.fact_tables).contains(&shape) {
                    make(transaction, name, &columns_of(table.schema))?;
                }
                transaction
                    .prepare_cached(&format!("DELETE FROM \"{name}\" WHERE checkpoint = ?1"))?
                    .execute([checkpoint.0])?;
                insert(transaction, checkpoint, table)?;
            }
            Ok(())
        })?;
        // Only after the commit do the tables exist permanently.
        lock(&self.fact_tables).extend(tables.iter().map(|t| (t.schema.table, t.schema.columns.len())));
        Ok(())
    }

    /// The facts of one kind from one checkpoint: the columns of its table without `checkpoint`, in the order in which
    /// they were recorded. A table that does not exist (yet) has no rows and no columns.
    pub fn facts(&self, checkpoint: CheckpointId, table: &str) -> Result<Rows> {
        check_name("fact table", table, true)?;
        self.read("reading facts", |reader| {
            let columns = column_names(reader, table)?;
            if columns.is_empty() {
                return Ok(Rows::default());
            }
            let list: Vec<_> = columns.iter().map(|name| format!("\"{name}\"")).collect();
            let sql =
                format!("SELECT {} FROM \"{table}\" WHERE checkpoint = ?1 ORDER BY rowid", list.join(", "));
            Ok(read_rows(&mut *reader.prepare_cached(&sql)?, [checkpoint.0], usize::MAX)?)
        })
    }

    /// The names of the fact tables there are.
    pub fn fact_tables(&self) -> Result<Vec<String>> {
        self.read("reading the names of fact tables", |reader| {
            let mut statement = reader.prepare_cached(TABLES)?;
            let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(names)
        })
    }
}

fn insert(transaction: &Transaction<'_>, checkpoint: CheckpointId, table: &Table) -> Result<(), Abort> {
    for row in &table.rows {
        let names = table.schema.columns.iter().map(|column| column.name);
        insert_row(transaction, checkpoint, table.schema.table, names, row)?;
    }
    Ok(())
}

/// Adds a fact.
pub(super) fn insert_row<'a>(
    transaction: &Transaction<'_>,
    checkpoint: CheckpointId,
    table: &str,
    columns: impl Iterator<Item = &'a str>,
    row: &[Value],
) -> Result<(), Abort> {
    let names: Vec<_> = columns.map(|name| format!(", \"{name}\"")).collect();
    let marks = ", ?".repeat(names.len());
    let sql = format!("INSERT INTO \"{table}\" (checkpoint{}) VALUES (?{marks})", names.concat());
    let number = Value::Integer(checkpoint.0);
    transaction
        .prepare_cached(&sql)?
        .execute(params_from_iter(std::iter::once(&number).chain(row).map(Cell)))?;
    Ok(())
}

/// Creates the missing table or columns, and the view.
pub(super) fn make(
    transaction: &Transaction<'_>,
    table: &str,
    columns: &[(&str, Kind)],
) -> Result<(), Abort> {
    let there: HashSet<String> = column_names(transaction, table)?.into_iter().collect();
    let missing = columns.iter().filter(|(name, _)| !there.contains(*name));
    let typed = |(name, kind): &(&str, Kind)| {
        format!(
            "\"{}\" {}",
            name,
            match kind {
                Kind::Integer => "INTEGER",
                Kind::Real => "REAL",
                Kind::Text => "TEXT",
            }
        )
    };
    if there.is_empty() {
        let columns: Vec<_> = missing.map(|column| format!(", {}", typed(column))).collect();
        transaction.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS \"{table}\" (checkpoint INTEGER NOT NULL{});
             CREATE INDEX IF NOT EXISTS \"{table}_by_checkpoint\" ON \"{table}\" (checkpoint);",
            columns.concat()
        ))?;
    } else {
        let mut any = false;
        for column in missing {
            transaction.execute_batch(&format!("ALTER TABLE \"{table}\" ADD COLUMN {}", typed(column)))?;
            any = true;
        }
        if !any {
            return Ok(());
        }
    }
    let columns: Vec<_> =
        column_names(transaction, table)?.iter().map(|name| format!(", f.\"{name}\"")).collect();
    transaction.execute_batch(&format!(
        "DROP VIEW IF EXISTS \"v_{table}\";
         CREATE VIEW \"v_{table}\" AS
         SELECT m.name AS machine_name, c.name AS checkpoint_name, c.sequence AS checkpoint_sequence, f.checkpoint{}
         FROM \"{table}\" f JOIN checkpoint c ON c.id = f.checkpoint JOIN machine m ON m.id = c.machine;",
        columns.concat()
    ))?;
    Ok(())
}

/// The fact tables there are, each with its columns after `checkpoint`.
pub(super) fn shapes(reader: &rusqlite::Connection) -> Result<Vec<FactShape>, Abort> {
    let mut statement = reader.prepare_cached(TABLES)?;
    let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    names.into_iter().map(|name| Ok((name.clone(), columns(reader, &name)?))).collect()
}

/// The table's columns after `checkpoint`, with their kinds.
pub(super) fn columns(reader: &rusqlite::Connection, table: &str) -> Result<Vec<(String, Kind)>, Abort> {
    let mut statement = reader.prepare_cached(
        "SELECT name, type FROM pragma_table_info(?1) WHERE name <> 'checkpoint' ORDER BY cid",
    )?;
    let rows = statement.query_map([table], |row| {
        let kind = match row.get::<_, String>(1)?.as_str() {
            "INTEGER" => Kind::Integer,
            "REAL" => Kind::Real,
            _ => Kind::Text,
        };
        Ok((row.get(0)?, kind))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The table's columns after `checkpoint`; empty when there is no such table.
fn column_names(reader: &rusqlite::Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    reader
        .prepare_cached("SELECT name FROM pragma_table_info(?1) WHERE name <> 'checkpoint' ORDER BY cid")?
        .query_map([table], |row| row.get(0))?
        .collect()
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
    let mut names = HashSet::from(["checkpoint", "machine_name", "checkpoint_name", "checkpoint_sequence"]);
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
