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

impl Catalogue {
    /// Keeps the facts of a checkpoint: one table a schema, a row a fact. Facts of the same kind recorded for this
    /// checkpoint before are replaced. A schema seen for the first time makes its table, and a view `v_<table>` that
    /// names machine and checkpoint; new columns are added to a table that lacks them.
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
                    make(transaction, table.schema)?;
                }
                transaction
                    .prepare_cached(&format!("DELETE FROM \"{name}\" WHERE checkpoint = ?1"))?
                    .execute([checkpoint.0])?;
                insert(transaction, checkpoint, table)?;
            }
            Ok(())
        })?;
        // Only now are the tables there for good.
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
            let mut statement = reader.prepare_cached(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'fact_*' ORDER BY name",
            )?;
            let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(names)
        })
    }
}

fn insert(transaction: &Transaction<'_>, checkpoint: CheckpointId, table: &Table) -> Result<(), Abort> {
    let names: Vec<_> = table.schema.columns.iter().map(|column| format!(", \"{}\"", column.name)).collect();
    let marks = ", ?".repeat(names.len());
    let sql =
        format!("INSERT INTO \"{}\" (checkpoint{}) VALUES (?{marks})", table.schema.table, names.concat());
    let mut statement = transaction.prepare_cached(&sql)?;
    let number = Value::Integer(checkpoint.0);
    for row in &table.rows {
        statement.execute(params_from_iter(std::iter::once(&number).chain(row).map(Cell)))?;
    }
    Ok(())
}

/// Makes the table or the columns that are missing, and the view.
fn make(transaction: &Transaction<'_>, schema: &Schema) -> Result<(), Abort> {
    let table = schema.table;
    let there: HashSet<String> = column_names(transaction, table)?.into_iter().collect();
    let missing = schema.columns.iter().filter(|column| !there.contains(column.name));
    let typed = |column: &retrovisor_guest::fact::Column| {
        format!(
            "\"{}\" {}",
            column.name,
            match column.kind {
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

/// The table's columns after `checkpoint`; empty when there is no such table.
fn column_names(reader: &rusqlite::Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    reader
        .prepare_cached("SELECT name FROM pragma_table_info(?1) WHERE name <> 'checkpoint' ORDER BY cid")?
        .query_map([table], |row| row.get(0))?
        .collect()
}

fn check(table: &Table) -> Result<()> {
    let schema = table.schema;
    check_name("fact table", schema.table, true)?;
    let mut names = HashSet::from(["checkpoint", "machine_name", "checkpoint_name", "checkpoint_sequence"]);
    for column in schema.columns {
        check_name("fact column", column.name, false)?;
        if !names.insert(column.name) {
            let why = format!("{} is there twice or means something else in {}", column.name, schema.table);
            return Err(Error::Invalid { what: "fact column", why });
        }
    }
    if schema.columns.is_empty() || schema.columns.len() > COLUMNS_MAX {
        let why = format!("{} has {} columns, not 1 to {COLUMNS_MAX}", schema.table, schema.columns.len());
        return Err(Error::Invalid { what: "fact table", why });
    }
    for row in &table.rows {
        if row.len() != schema.columns.len() {
            let why =
                format!("a row of {} has {} cells, not {}", schema.table, row.len(), schema.columns.len());
            return Err(Error::Invalid { what: "fact row", why });
        }
        for (column, value) in schema.columns.iter().zip(row) {
            let fits = match value {
                Value::Null => true,
                Value::Integer(_) => column.kind == Kind::Integer,
                Value::Real(_) => column.kind == Kind::Real,
                Value::Text(_) => column.kind == Kind::Text,
            };
            if !fits {
                let why = format!("{}.{} is {:?}, got {value:?}", schema.table, column.name, column.kind);
                return Err(Error::Invalid { what: "fact row", why });
            }
        }
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
