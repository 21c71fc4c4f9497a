//! The rows of a machine in an archive, and how they are read.

use retrovisor_guest::DiskBase;
use retrovisor_guest::fact::{Kind, Value};
use rusqlite::{Connection, Row};

use super::abort::Abort;
use super::checkpoint::CheckpointKind;
use super::connection::Catalogue;
use super::disk::{DISK_LINK, DiskLink};
use super::fact::{self, FactShape};
use super::machine::{self, MachineRecord};
use super::operation::{OperationKind, OperationStatus};
use super::page_version::{LINK, Link};
use super::rows::cell;
use super::verdict::Verdict;
use super::{disk, page_version};
use crate::error::Result;
use crate::id::MachineId;

/// The meaning of a column, and how it is imported into another store.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    /// The row's own number, which is new in another store. Always the first column.
    Own(Space),
    /// The number of an earlier row.
    Of(Space),
    /// The same, or null.
    Maybe(Space),
    /// The same; null when there is no such row any more.
    Loosely(Space),
    /// A number.
    Integer,
    /// A number that is not negative.
    Count,
    /// A number that is not negative, or null.
    MaybeCount,
    Real,
    MaybeReal,
    /// A short id, which is new if it is taken.
    Name,
    Text,
    MaybeText,
    /// Text that must be readable.
    Word(fn(&str) -> bool),
}

/// What a number identifies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Timeline,
    Checkpoint,
    /// A checkpoint that is there or was pruned.
    Instant,
    Operation,
    Incident,
    Disk,
}

/// A table of which an archive has rows.
pub(crate) struct Shape {
    pub(crate) table: &'static str,
    /// Whether it has a column `machine`; it has one `checkpoint` otherwise.
    pub(crate) has_machine: bool,
    pub(crate) columns: &'static [(&'static str, Role)],
}

fn is_kind(text: &str) -> bool {
    text.parse::<CheckpointKind>().is_ok()
}

fn is_operation(text: &str) -> bool {
    text.parse::<OperationKind>().is_ok()
}

fn is_status(text: &str) -> bool {
    text.parse::<OperationStatus>().is_ok()
}

fn is_verdict(text: &str) -> bool {
    text.parse::<Verdict>().is_ok()
}

fn is_base(text: &str) -> bool {
    serde_json::from_str::<Option<DiskBase>>(text).is_ok()
}

fn is_texts(text: &str) -> bool {
    serde_json::from_str::<Vec<String>>(text).is_ok()
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// The tables in the order of an archive. A timeline's origin is imported after the timeline: it has a record of its
/// own.
pub(crate) const SHAPES: &[Shape] = &[
    Shape {
        table: "disk",
        has_machine: true,
        columns: &[
            ("id", Role::Own(Space::Disk)),
            ("name", Role::Text),
            ("size_bytes", Role::Count),
            ("base", Role::Word(is_base)),
        ],
    },
    Shape {
        table: "timeline",
        has_machine: true,
        columns: &[("id", Role::Own(Space::Timeline)), ("created_at_ms", Role::Integer)],
    },
    Shape {
        table: "pruned",
        has_machine: true,
        columns: &[
            ("checkpoint", Role::Own(Space::Instant)),
            ("name", Role::Name),
            ("sequence", Role::Count),
            ("taken_at_ms", Role::Integer),
            ("pruned_at_ms", Role::Integer),
        ],
    },
    Shape {
        table: "checkpoint",
        has_machine: true,
        columns: &[
            ("id", Role::Own(Space::Checkpoint)),
            ("name", Role::Name),
            ("timeline", Role::Of(Space::Timeline)),
            ("parent", Role::Maybe(Space::Checkpoint)),
            ("sequence", Role::Count),
            ("label", Role::MaybeText),
            ("pinned", Role::Count),
            ("kind", Role::Word(is_kind)),
            ("taken_at_ms", Role::Integer),
            ("pause_us", Role::Count),
            ("durable_us", Role::MaybeCount),
            ("dirty_pages", Role::Count),
            ("changed_pages", Role::Count),
            ("new_pages", Role::Count),
            ("zero_pages", Role::Count),
            ("stored_bytes", Role::Count),
            ("doubtful", Role::Count),
        ],
    },
    Shape {
        table: "operation",
        has_machine: true,
        columns: &[
            ("id", Role::Own(Space::Operation)),
            ("name", Role::Name),
            ("kind", Role::Word(is_operation)),
            ("status", Role::Word(is_status)),
            ("at_ms", Role::Integer),
            ("before", Role::Loosely(Space::Instant)),
            ("before_timeline", Role::Loosely(Space::Timeline)),
            ("after", Role::Loosely(Space::Instant)),
            ("after_timeline", Role::Loosely(Space::Timeline)),
            ("undoes", Role::Loosely(Space::Operation)),
            ("detail", Role::Word(is_json)),
        ],
    },
    Shape {
        table: "incident",
        has_machine: true,
        columns: &[
            ("id", Role::Own(Space::Incident)),
            ("name", Role::Name),
            ("first_bad", Role::Of(Space::Instant)),
            ("last_good", Role::Loosely(Space::Instant)),
            ("opened_at_ms", Role::Integer),
            ("kind", Role::Text),
            ("summary", Role::Text),
            ("detail", Role::Word(is_json)),
            ("action", Role::MaybeText),
        ],
    },
    Shape {
        table: "verdict",
        has_machine: false,
        columns: &[
            ("checkpoint", Role::Of(Space::Checkpoint)),
            ("verdict", Role::Word(is_verdict)),
            ("score", Role::Real),
            ("p_value", Role::MaybeReal),
            ("reasons", Role::Word(is_texts)),
        ],
    },
    Shape {
        table: "feature",
        has_machine: false,
        columns: &[("checkpoint", Role::Of(Space::Checkpoint)), ("name", Role::Text), ("value", Role::Real)],
    },
];

/// A machine's rows at one moment, independent of later writes.
pub(crate) struct Archived<'a> {
    reader: &'a Connection,
    machine: MachineId,
}

impl Catalogue {
    /// Reads a machine as it is now.
    pub(crate) fn archived<T>(
        &self,
        machine: MachineId,
        work: impl FnOnce(&Archived<'_>) -> Result<T>,
    ) -> Result<T> {
        self.read("reading a machine's history", |reader| {
            let transaction = reader.unchecked_transaction()?;
            let answer = work(&Archived { reader: &transaction, machine });
            transaction.finish()?;
            Ok(answer?)
        })
    }
}

impl Archived<'_> {
    pub(crate) fn machine(&self) -> Result<MachineRecord> {
        let id = self.machine;
        named(machine::one(self.reader, "id = ?1", id.0, &id.to_string()))
    }

    /// Its checkpoints, parents before their children.
    pub(crate) fn links(&self) -> Result<Vec<Link>> {
        named(self.links_of(&format!("{LINK} WHERE machine = ?1 ORDER BY id"), page_version::link_row))
    }

    /// Its disks at its checkpoints.
    pub(crate) fn disk_links(&self) -> Result<Vec<DiskLink>> {
        let sql = format!("{DISK_LINK} WHERE c.machine = ?1 ORDER BY v.checkpoint, v.disk");
        named(self.links_of(&sql, disk::link))
    }

    /// The timelines that begin at a checkpoint of the machine, with that checkpoint.
    pub(crate) fn origins(&self) -> Result<Vec<(i64, i64)>> {
        let sql = "SELECT t.id, t.origin FROM timeline t JOIN checkpoint c ON c.id = t.origin AND c.machine = t.machine
            WHERE t.machine = ?1 ORDER BY t.id";
        named(self.links_of(sql, |row| Ok((row.get(0)?, row.get(1)?))))
    }

    /// Calls `each` with every row of a table.
    pub(crate) fn rows(&self, shape: &Shape, each: &mut dyn FnMut(Vec<Value>) -> Result<()>) -> Result<()> {
        let names: Vec<_> = shape.columns.iter().map(|(name, _)| *name).collect();
        let of = if shape.has_machine {
            "machine = ?1"
        } else {
            "checkpoint IN (SELECT id FROM checkpoint WHERE machine = ?1)"
        };
        let sql = format!("SELECT {} FROM {} WHERE {of} ORDER BY 1", names.join(", "), shape.table);
        self.each_row(&sql, names.len(), each)
    }

    /// The kinds of facts, and their columns.
    pub(crate) fn fact_shapes(&self) -> Result<Vec<FactShape>> {
        named(fact::shapes(self.reader))
    }

    /// Calls `each` with every fact of a kind: the checkpoint, then its columns.
    pub(crate) fn facts(
        &self,
        table: &str,
        columns: &[(String, Kind)],
        each: &mut dyn FnMut(Vec<Value>) -> Result<()>,
    ) -> Result<()> {
        let sql = named(fact::select_of_machine(self.reader, table))?;
        self.each_row(&sql, columns.len() + 1, each)
    }

    fn each_row(
        &self,
        sql: &str,
        columns: usize,
        each: &mut dyn FnMut(Vec<Value>) -> Result<()>,
    ) -> Result<()> {
        named((|| {
            let mut statement = self.reader.prepare_cached(sql)?;
            let mut rows = statement.query([self.machine.0])?;
            while let Some(row) = rows.next()? {
                let row: rusqlite::Result<_> = (0..columns).map(|at| Ok(cell(row.get_ref(at)?))).collect();
                each(row?)?;
            }
            Ok(())
        })())
    }

    fn links_of<T>(
        &self,
        sql: &str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Abort> {
        let mut statement = self.reader.prepare_cached(sql)?;
        let rows = statement.query_map([self.machine.0], read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn named<T>(answer: Result<T, Abort>) -> Result<T> {
    answer.map_err(|abort| match abort {
        Abort::Sql(source) => crate::error::Error::Catalogue { doing: "reading a machine's history", source },
        Abort::Named(error) => error,
    })
}
