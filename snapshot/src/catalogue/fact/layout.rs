//! How the columns of a kind of fact are kept: its span table, its indexes and its views.

use std::collections::HashMap;

use retrovisor_guest::fact::{Keeping, Kind};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::super::abort::Abort;
use crate::damage::Damage;
use crate::error::Error;

/// The names of kinds of facts begin with this.
pub(super) const PREFIX: &str = "fact_";

/// The name of a kind of facts, and names and kinds of its columns.
pub(crate) type FactShape = (String, Vec<(String, Kind)>);

/// Most volatile columns of a kind; further ones are kept as stable ones.
const VOLATILE_MAX: usize = 64;
/// The end of a span that has not ended.
const FOREVER: i64 = i64::MAX;
/// Columns that the view `v_fact_…` has before those of the fact.
const OWN_COLUMNS: [&str; 5] = ["machine", "checkpoint", "sequence", "taken_at", "checkpoint_name"];

/// A column of a fact.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) keeping: Keeping,
}

/// A kind of fact as the catalogue has it.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Its number.
    pub(super) id: i64,
    /// Its name: `fact_task`.
    pub(super) table: String,
    pub(super) fields: Vec<Field>,
}

impl Layout {
    /// The table of its spans.
    pub(super) fn span(&self) -> String {
        format!("span_{}", self.short())
    }

    /// The name without `fact_`.
    fn short(&self) -> &str {
        self.table.strip_prefix(PREFIX).unwrap_or(&self.table)
    }

    /// The positions of the stable columns.
    pub(super) fn stable(&self) -> impl Iterator<Item = usize> {
        self.of(|keeping| keeping != Keeping::Volatile)
    }

    /// The positions of the volatile columns, in the order of their values.
    pub(super) fn volatile(&self) -> impl Iterator<Item = usize> {
        self.of(|keeping| keeping == Keeping::Volatile)
    }

    fn of(&self, wanted: fn(Keeping) -> bool) -> impl Iterator<Item = usize> {
        self.fields.iter().enumerate().filter(move |(_, field)| wanted(field.keeping)).map(|(at, _)| at)
    }

    /// Selects rows of checkpoints: an expression for each column, then what they are selected from: observations as
    /// `o` and spans as `s`. SQLite begins with whichever is restricted.
    pub(super) fn select(&self) -> (Vec<String>, String) {
        let mut next = 0;
        let cells = self.fields.iter().map(|Field { name, keeping, .. }| {
            if *keeping != Keeping::Volatile {
                return format!("s.\"{name}\"");
            }
            next += 1;
            format!("fact_value(o.id, b.volatile, o.volatile, {}, s._slot, {})", self.id, next - 1)
        });
        let cells: Vec<_> = cells.collect();
        let base = if next > 0 { " LEFT JOIN observation b ON b.id = o.base" } else { "" };
        let from = format!(
            "\"{}\" s JOIN observation o ON o.series = s._series
                 AND o.checkpoint BETWEEN s._first AND ifnull(s._last, {FOREVER}){base}",
            self.span()
        );
        (cells, from)
    }

    /// Makes the views of the kind again.
    fn make_views(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let (cells, from) = self.select();
        let named = |cell: &String, name: &str| format!(", {cell} AS \"{name}\"");
        let all = || cells.iter().zip(&self.fields);
        let plain: String = all().map(|(cell, field)| named(cell, &field.name)).collect();
        let joined = all().map(|(cell, Field { name, .. })| {
            if OWN_COLUMNS.contains(&name.as_str()) {
                named(cell, &format!("{}_{name}", self.short()))
            } else {
                named(cell, name)
            }
        });
        let joined: String = joined.collect();
        transaction.execute_batch(&format!(
            "DROP VIEW IF EXISTS \"v_{table}\";
             DROP VIEW IF EXISTS \"{table}\";
             CREATE VIEW \"{table}\" AS SELECT o.checkpoint{plain} FROM {from};
             CREATE VIEW \"v_{table}\" AS
             SELECT m.name AS machine, o.checkpoint, c.sequence,
                    strftime('%Y-%m-%d %H:%M:%f', c.taken_at_ms / 1000.0, 'unixepoch') AS taken_at,
                    c.name AS checkpoint_name{joined}
             FROM {from} JOIN checkpoint c ON c.id = o.checkpoint JOIN machine m ON m.id = s._machine;",
            table = self.table
        ))
    }

    fn make_index(&self, transaction: &Transaction<'_>, field: &Field) -> rusqlite::Result<()> {
        let (span, name) = (self.span(), &field.name);
        transaction.execute_batch(&format!(
            "CREATE INDEX IF NOT EXISTS \"{span}_by_{name}\" ON \"{span}\" (\"{name}\", _machine, _first, _last)
             WHERE \"{name}\" IS NOT NULL"
        ))
    }
}

/// All kinds of facts there are, by name.
pub(super) fn all(reader: &Connection) -> Result<Vec<Layout>, Abort> {
    let names: Vec<String> = reader
        .prepare_cached("SELECT name FROM fact ORDER BY name")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    names.iter().filter_map(|name| find(reader, name).transpose()).collect()
}

/// The kind of facts of this name, if there is one.
pub(super) fn find(reader: &Connection, table: &str) -> Result<Option<Layout>, Abort> {
    let id = reader
        .prepare_cached("SELECT id FROM fact WHERE name = ?1")?
        .query_row([table], |row| row.get(0))
        .optional()?;
    let Some(id) = id else { return Ok(None) };
    let mut statement =
        reader.prepare_cached("SELECT name, kind, keeping FROM field WHERE fact = ?1 ORDER BY ordinal")?;
    let mut rows = statement.query([id])?;
    let mut fields = Vec::new();
    while let Some(row) = rows.next()? {
        let (kind, keeping) = (kind(&row.get::<_, String>(1)?), keeping(&row.get::<_, String>(2)?));
        let (Some(kind), Some(keeping)) = (kind, keeping) else {
            return Err(Error::Damaged(Box::new(Damage::catalogue(format!("a column of {table}")))).into());
        };
        fields.push(Field { name: row.get(0)?, kind, keeping });
    }
    Ok(Some(Layout { id, table: table.to_owned(), fields }))
}

/// Makes what is missing of a kind: its tables, columns, indexes and views. A column that exists stays as it is kept,
/// except that a stable one may become sought.
pub(super) fn make(transaction: &Transaction<'_>, table: &str, columns: &[Field]) -> Result<Layout, Abort> {
    let found = find(transaction, table)?;
    let is_new = found.is_none();
    let mut layout = if let Some(layout) = found {
        layout
    } else {
        transaction.execute("INSERT INTO fact (name) VALUES (?1)", [table])?;
        Layout { id: transaction.last_insert_rowid(), table: table.to_owned(), fields: Vec::new() }
    };
    let span = layout.span();
    if is_new {
        transaction.execute_batch(&format!(
            "CREATE TABLE \"{span}\" (_series INTEGER NOT NULL, _slot INTEGER NOT NULL, _machine INTEGER NOT NULL,
                 _first INTEGER NOT NULL, _last INTEGER, PRIMARY KEY (_series, _slot)) WITHOUT ROWID"
        ))?;
    }
    let there: HashMap<String, usize> =
        layout.fields.iter().enumerate().map(|(at, field)| (field.name.clone(), at)).collect();
    let (mut is_wider, mut is_sought) = (is_new, false);
    for column in columns {
        if let Some(at) = there.get(&column.name) {
            if (layout.fields[*at].keeping, column.keeping) == (Keeping::Stable, Keeping::Sought) {
                layout.fields[*at].keeping = Keeping::Sought;
                transaction.execute(
                    "UPDATE field SET keeping = 'sought' WHERE fact = ?1 AND name = ?2",
                    params![layout.id, column.name],
                )?;
                layout.make_index(transaction, column)?;
                is_sought = true;
            }
            continue;
        }
        let mut column = column.clone();
        if column.keeping == Keeping::Volatile && layout.volatile().count() >= VOLATILE_MAX {
            column.keeping = Keeping::Stable;
        }
        if column.keeping != Keeping::Volatile {
            let kind = kind_name(column.kind);
            transaction
                .execute_batch(&format!("ALTER TABLE \"{span}\" ADD COLUMN \"{}\" {kind}", column.name))?;
        }
        transaction.execute(
            "INSERT INTO field (fact, ordinal, name, kind, keeping) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                layout.id,
                layout.fields.len(),
                column.name,
                kind_name(column.kind),
                keeping_name(column.keeping)
            ],
        )?;
        if column.keeping == Keeping::Sought {
            layout.make_index(transaction, &column)?;
            is_sought = true;
        }
        layout.fields.push(column);
        is_wider = true;
    }
    if is_wider {
        layout.make_views(transaction)?;
    }
    if is_sought {
        make_seen(transaction)?;
    }
    Ok(layout)
}

/// Makes the view of the checkpoints in which each sought value was first and last seen.
pub(super) fn make_seen(transaction: &Transaction<'_>) -> Result<(), Abort> {
    // The view is there before the first fact is.
    let mut parts = vec![
        "SELECT 0 AS machine, '' AS fact, '' AS field, '' AS value, 0 AS first, 0 AS last WHERE false"
            .to_owned(),
    ];
    for layout in all(transaction)? {
        for field in layout.fields.iter().filter(|field| field.keeping == Keeping::Sought) {
            parts.push(format!(
                "SELECT _machine AS machine, '{table}' AS fact, '{name}' AS field, \"{name}\" AS value,
                        min(_first) AS first,
                        max(ifnull(_last, (SELECT max(checkpoint) FROM observation WHERE series = _series))) AS last
                 FROM \"{span}\" WHERE \"{name}\" IS NOT NULL GROUP BY \"{name}\", _machine",
                table = layout.table,
                span = layout.span(),
                name = field.name
            ));
        }
    }
    transaction.execute_batch(&format!(
        "DROP VIEW IF EXISTS v_seen;
         CREATE VIEW v_seen AS
         SELECT m.name AS machine, s.fact, s.field, s.value,
                s.first AS first_checkpoint, a.name AS first_checkpoint_name, a.sequence AS first_sequence,
                a.taken_at_ms AS first_taken_at_ms,
                s.last AS last_checkpoint, z.name AS last_checkpoint_name, z.sequence AS last_sequence,
                z.taken_at_ms AS last_taken_at_ms
         FROM ({}) s
         JOIN machine m ON m.id = s.machine
         JOIN checkpoint a ON a.id = s.first
         JOIN checkpoint z ON z.id = s.last;",
        parts.join(" UNION ALL ")
    ))?;
    Ok(())
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Integer => "INTEGER",
        Kind::Real => "REAL",
        Kind::Text => "TEXT",
    }
}

fn kind(name: &str) -> Option<Kind> {
    [Kind::Integer, Kind::Real, Kind::Text].into_iter().find(|kind| kind_name(*kind) == name)
}

fn keeping_name(keeping: Keeping) -> &'static str {
    match keeping {
        Keeping::Stable => "stable",
        Keeping::Sought => "sought",
        Keeping::Volatile => "volatile",
    }
}

fn keeping(name: &str) -> Option<Keeping> {
    let all = [Keeping::Stable, Keeping::Sought, Keeping::Volatile];
    all.into_iter().find(|keeping| keeping_name(*keeping) == name)
}
