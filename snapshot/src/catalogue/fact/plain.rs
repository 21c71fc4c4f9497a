//! Facts as plain rows, one for each fact and checkpoint: as archives have them, and as catalogues had them until
//! format 3. They are put into tables `plain_…` first, because they come by kind, and are recorded by checkpoint.

use std::borrow::Cow;
use std::sync::Arc;

use retrovisor_guest::fact::{Keeping, Kind, Value};
use rusqlite::{Connection, Transaction, params_from_iter};

use super::super::abort::Abort;
use super::super::rows::{Cell, Rows, read_rows};
use super::layout::{self, FactShape, Field, Layout, PREFIX};
use super::series::{Facts, Tip};
use crate::error::Error;
use crate::id::CheckpointId;

/// How columns are kept that come without saying so: the kinds of facts of format 3.
const KEPT: &[(&str, &[&str], &[&str])] = &[
    ("fact_bpf", &[], &["name"]),
    ("fact_counter", &["value"], &[]),
    ("fact_hook", &[], &["symbol"]),
    ("fact_integrity", &[], &["object"]),
    ("fact_kernel", &["uptime_ns", "jiffies", "torn"], &[]),
    ("fact_memory", &["zero_pages", "data_pages", "pages_read", "pages_unreadable"], &[]),
    ("fact_module", &["refcount"], &["name"]),
    ("fact_open_file", &["position"], &[]),
    (
        "fact_processor",
        &[
            "user_ns",
            "nice_ns",
            "system_ns",
            "idle_ns",
            "iowait_ns",
            "irq_ns",
            "softirq_ns",
            "steal_ns",
            "context_switches",
            "interrupts",
            "running",
            "current_pid",
            "watchdog_touched",
        ],
        &[],
    ),
    ("fact_reading", &["introspect_us"], &[]),
    ("fact_socket", &[], &["local_port", "remote_address"]),
    ("fact_syscall", &[], &["symbol"]),
    (
        "fact_task",
        &[
            "state",
            "utime_ns",
            "stime_ns",
            "voluntary_switches",
            "involuntary_switches",
            "rss_pages",
            "vsize_pages",
            "on_cpu",
            "views",
            "waits_in",
        ],
        &["executable"],
    ),
];

fn keeping(table: &str, column: &str) -> Keeping {
    let known = KEPT.iter().find(|(name, ..)| *name == table);
    match known {
        Some((_, volatile, _)) if volatile.contains(&column) => Keeping::Volatile,
        Some((.., sought)) if sought.contains(&column) => Keeping::Sought,
        _ => Keeping::Stable,
    }
}

/// The kinds of which there are plain rows, and their columns.
fn tables(reader: &Connection, prefix: &str) -> Result<Vec<FactShape>, Abort> {
    let mut statement = reader.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB ?1 || '*' ORDER BY name",
    )?;
    let names: Vec<String> = statement.query_map([prefix], |row| row.get(0))?.collect::<Result<_, _>>()?;
    names.into_iter().map(|name| Ok((name.clone(), columns(reader, &name)?))).collect()
}

/// The columns of a plain table after `checkpoint`.
fn columns(reader: &Connection, table: &str) -> Result<Vec<(String, Kind)>, Abort> {
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

/// The table of plain rows of a kind.
fn plain_name(table: &str) -> String {
    format!("plain_{}", table.strip_prefix(PREFIX).unwrap_or(table))
}

/// Makes the table for plain rows of a kind, or the columns that it lacks. Returns the first column that is of another
/// kind in this store.
pub(in crate::catalogue) fn plain_table(
    transaction: &Transaction<'_>,
    table: &str,
    wanted: &[(&str, Kind)],
) -> Result<Option<String>, Abort> {
    let plain = plain_name(table);
    let there = columns(transaction, &plain)?;
    let layout = layout::find(transaction, table)?;
    let fields = layout.iter().flat_map(|layout| &layout.fields).map(|field| (&field.name, field.kind));
    let known: Vec<_> = there.iter().map(|(name, kind)| (name, *kind)).chain(fields).collect();
    for (name, kind) in wanted {
        if known.iter().any(|(other, there)| other == name && there != kind) {
            return Ok(Some((*name).to_owned()));
        }
    }
    if there.is_empty() {
        transaction.execute_batch(&format!(
            "CREATE TABLE \"{plain}\" (checkpoint INTEGER NOT NULL);
             CREATE INDEX \"{plain}_by_checkpoint\" ON \"{plain}\" (checkpoint);"
        ))?;
    }
    for (name, kind) in wanted.iter().filter(|(name, _)| there.iter().all(|(other, _)| other != name)) {
        let kind = layout::kind_name(*kind);
        transaction.execute_batch(&format!("ALTER TABLE \"{plain}\" ADD COLUMN \"{name}\" {kind}"))?;
    }
    Ok(None)
}

/// Adds a plain row.
pub(in crate::catalogue) fn plain_insert<'a>(
    transaction: &Transaction<'_>,
    checkpoint: CheckpointId,
    table: &str,
    columns: impl Iterator<Item = &'a str>,
    row: &[Value],
) -> Result<(), Abort> {
    let names: Vec<_> = columns.map(|name| format!(", \"{name}\"")).collect();
    let marks = ", ?".repeat(names.len());
    let plain = plain_name(table);
    let sql = format!("INSERT INTO \"{plain}\" (checkpoint{}) VALUES (?{marks})", names.concat());
    let number = Value::Integer(checkpoint.0);
    transaction
        .prepare_cached(&sql)?
        .execute(params_from_iter(std::iter::once(&number).chain(row).map(Cell)))?;
    Ok(())
}

/// Records the facts of all plain rows, and removes the tables of these. The checkpoints have no facts yet.
pub(in crate::catalogue) fn adopt(transaction: &Transaction<'_>) -> Result<(), Abort> {
    let mut kinds: Vec<(Arc<Layout>, Vec<Option<usize>>, String)> = Vec::new();
    let mut checkpoints = Vec::new();
    for (plain, columns) in tables(transaction, "plain_")? {
        let table = format!("{PREFIX}{}", plain.strip_prefix("plain_").unwrap_or(&plain));
        let field = |(name, kind): &(String, Kind)| Field {
            name: name.clone(),
            kind: *kind,
            keeping: keeping(&table, name),
        };
        let layout = layout::make(transaction, &table, &columns.iter().map(field).collect::<Vec<_>>())?;
        let place = |field: &Field| columns.iter().position(|(name, _)| *name == field.name);
        let order = layout.fields.iter().map(place).collect();
        let names: Vec<_> = columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let sql =
            format!("SELECT {} FROM \"{plain}\" WHERE checkpoint = ?1 ORDER BY rowid", names.join(", "));
        kinds.push((Arc::new(layout), order, sql));
        checkpoints.push(format!("SELECT DISTINCT checkpoint FROM \"{plain}\""));
    }
    if checkpoints.is_empty() {
        return Ok(());
    }
    let mut with_facts: Vec<(i64, i64)> = Vec::new();
    for sql in checkpoints {
        let sql = format!("SELECT c.machine, c.id FROM checkpoint c WHERE c.id IN ({sql})");
        let mut statement = transaction.prepare(&sql)?;
        for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
            with_facts.push(row?);
        }
    }
    with_facts.sort_unstable();
    with_facts.dedup();
    let mut tip: Option<Tip> = None;
    for (machine, checkpoint) in with_facts {
        let mut facts = Vec::new();
        for (layout, order, sql) in &kinds {
            let rows = read_rows(&mut *transaction.prepare_cached(sql)?, [checkpoint], usize::MAX)?;
            whole(layout, &rows)?;
            facts.push(Facts {
                layout: Arc::clone(layout),
                order: order.clone(),
                rows: Cow::Owned(rows.rows),
            });
        }
        let of_machine = tip.filter(|tip| tip.machine == machine);
        tip = Some(Tip::append(transaction, of_machine, (machine, checkpoint), &facts)?);
    }
    for (plain, _) in tables(transaction, "plain_")? {
        transaction.execute_batch(&format!("DROP TABLE \"{plain}\""))?;
    }
    Ok(())
}

/// Facts that are recorded again must all be there.
pub(super) fn whole(layout: &Layout, rows: &Rows) -> Result<(), Error> {
    if rows.truncated {
        let why = format!("a checkpoint has more rows of {} than can be read", layout.table);
        return Err(Error::Invalid { what: "facts", why });
    }
    Ok(())
}

/// Records the facts of a catalogue of format 3.
pub(in crate::catalogue) fn migrate(transaction: &Transaction<'_>) -> Result<(), Abort> {
    for (table, _) in tables(transaction, PREFIX)? {
        let plain = plain_name(&table);
        transaction.execute_batch(&format!(
            "DROP VIEW IF EXISTS \"v_{table}\"; ALTER TABLE \"{table}\" RENAME TO \"{plain}\";"
        ))?;
    }
    layout::make_seen(transaction)?;
    adopt(transaction)
}
