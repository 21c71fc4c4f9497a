//! Import of a machine from an archive: with new numbers and short ids, in one transaction.

use std::collections::HashMap;
use std::path::Path;

use retrovisor_guest::fact::{Kind, Value};
use retrovisor_guest::{Gfn, MachineIdentity};
use rusqlite::{OptionalExtension, Transaction, params, params_from_iter};

use super::abort::Abort;
use super::archive::{Role, SHAPES, Shape, Space};
use super::connection::{Catalogue, Durability};
use super::disk::{self, NewDiskVersion};
use super::operation::{self, NewOperation};
use super::page_version::{self, Keyframe, Link};
use super::position::{self, Position};
use super::rows::Cell;
use super::state::{self, StoredState};
use super::{fact, machine};
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, DiskId, MachineId, TimelineId, fresh_name, is_name_prefix};
use crate::key::Hash;

/// Length of a short id.
const NAME_LENGTH: usize = 12;

/// A machine that is being imported.
pub(crate) struct MachineImport<'a> {
    transaction: &'a Transaction<'a>,
    path: &'a Path,
    pub(crate) machine: MachineId,
    numbers: HashMap<(Space, i64), i64>,
    /// The number of the next checkpoint, pruned or not: above all that were ever used.
    next: i64,
}

impl Catalogue {
    /// Imports a machine: all rows of `work`, or none. The contents are in the catalogue already. `path` is the
    /// archive.
    pub(crate) fn import_machine<T>(
        &self,
        path: &Path,
        identity: &MachineIdentity,
        created_at_ms: i64,
        work: impl FnOnce(&mut MachineImport<'_>) -> Result<T>,
    ) -> Result<T> {
        let answer = self.write_long("importing a machine", Durability::Full, |transaction| {
            let machine = machine::insert(transaction, identity, created_at_ms)?;
            let next = transaction.query_row(
                "SELECT 1 + max(coalesce((SELECT max(id) FROM checkpoint), 0),
                                coalesce((SELECT max(checkpoint) FROM pruned), 0))",
                [],
                |row| row.get(0),
            )?;
            let numbers = HashMap::new();
            let mut import = MachineImport { transaction, path, machine, numbers, next };
            Ok(work(&mut import)?)
        });
        // Rows that violate the tables' constraints are errors of the archive.
        answer.map_err(|error| match error {
            Error::Catalogue { source, .. }
                if source.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) =>
            {
                not_importable(path, &format!("its rows contradict each other ({source})"))
            }
            other => other,
        })
    }
}

impl MachineImport<'_> {
    /// The number in this store for a number in the archive.
    pub(crate) fn number(&self, space: Space, old: i64) -> Result<i64> {
        let found = self.numbers.get(&(space, old)).copied();
        found.ok_or_else(|| self.wrong("it names something that is not in it"))
    }

    /// The table of this name, if an archive can have its rows.
    pub(crate) fn shape(table: &str) -> Option<&'static Shape> {
        SHAPES.iter().find(|shape| shape.table == table)
    }

    /// Adds a row of a table.
    pub(crate) fn row(&mut self, shape: &Shape, row: &[Value]) -> Result<()> {
        if row.len() != shape.columns.len() {
            return Err(self.wrong("a row of it is too short or too long"));
        }
        let (mut names, mut values) = (Vec::new(), Vec::new());
        if shape.has_machine {
            names.push("machine");
            values.push(Value::Integer(self.machine.0));
        }
        if shape.table == "checkpoint" {
            // Until its changes are imported.
            names.extend(["keyframe_distance", "keyframe_rows", "changes_hash"]);
            values.extend([Value::Integer(0), Value::Integer(0), Value::Text(String::new())]);
        }
        let mut own = None;
        for ((name, role), value) in shape.columns.iter().zip(row) {
            if let Role::Own(space) = role {
                let Value::Integer(old) = value else { return Err(self.wrong("a row of it has no number")) };
                own = Some((*space, *old));
                if !matches!(space, Space::Checkpoint | Space::Instant) {
                    continue;
                }
                values.push(Value::Integer(self.next));
            } else {
                let value = self.value(shape.table, *role, value)?;
                let what = || format!("{}.{name} cannot be read", shape.table);
                values.push(value.ok_or_else(|| self.wrong(&what()))?);
            }
            names.push(name);
        }
        let marks = vec!["?"; names.len()].join(", ");
        let sql = format!("INSERT INTO {} ({}) VALUES ({marks})", shape.table, names.join(", "));
        let insert = || -> rusqlite::Result<i64> {
            let mut statement = self.transaction.prepare_cached(&sql)?;
            statement.execute(params_from_iter(values.iter().map(Cell)))?;
            Ok(self.transaction.last_insert_rowid())
        };
        let given = insert().map_err(sql_error)?;
        if let Some((space, old)) = own {
            let given = if matches!(space, Space::Checkpoint | Space::Instant) { self.next } else { given };
            let mut twice = self.numbers.insert((space, old), given).is_some();
            if space == Space::Checkpoint {
                // A checkpoint also has a row for its instant.
                twice |= self.numbers.insert((Space::Instant, old), given).is_some();
            }
            if twice {
                return Err(self.wrong("a row is in it twice"));
            }
            if matches!(space, Space::Checkpoint | Space::Instant) {
                self.next += 1;
            }
        }
        Ok(())
    }

    /// A value for this store; none if it is not valid.
    fn value(&self, table: &str, role: Role, value: &Value) -> Result<Option<Value>> {
        let fits = match (role, value) {
            (Role::Of(space) | Role::Maybe(space), Value::Integer(old)) => {
                return Ok(Some(Value::Integer(self.number(space, *old)?)));
            }
            (Role::Loosely(space), Value::Integer(old)) => {
                let found = self.numbers.get(&(space, *old));
                return Ok(Some(found.map_or(Value::Null, |number| Value::Integer(*number))));
            }
            (Role::Name, Value::Text(name)) => {
                return Ok(Some(Value::Text(self.name(table, name)?)));
            }
            (Role::Count | Role::MaybeCount, Value::Integer(number)) => *number >= 0,
            (Role::Word(is), Value::Text(text)) => is(text),
            (Role::Integer, Value::Integer(_))
            | (Role::Real | Role::MaybeReal, Value::Real(_))
            | (Role::Text | Role::MaybeText, Value::Text(_)) => true,
            (maybe, Value::Null) => matches!(
                maybe,
                Role::Maybe(_) | Role::Loosely(_) | Role::MaybeCount | Role::MaybeReal | Role::MaybeText
            ),
            _ => false,
        };
        Ok(fits.then(|| value.clone()))
    }

    /// The short id, or a new one if it is taken.
    fn name(&self, table: &str, name: &str) -> Result<String> {
        if name.len() != NAME_LENGTH || !is_name_prefix(name) {
            return Err(self.wrong("a short id in it is none"));
        }
        let taken = match table {
            "checkpoint" | "pruned" => {
                "SELECT 1 FROM checkpoint WHERE name = ?1 UNION ALL SELECT 1 FROM pruned WHERE name = ?1"
            }
            "operation" => "SELECT 1 FROM operation WHERE name = ?1",
            _ => "SELECT 1 FROM incident WHERE name = ?1",
        };
        let find = || self.transaction.prepare_cached(taken)?.query_row([name], |_| Ok(())).optional();
        Ok(if find().map_err(sql_error)?.is_some() { fresh_name() } else { name.to_owned() })
    }

    /// Sets the origin of a timeline.
    pub(crate) fn origin(&self, timeline: i64, checkpoint: i64) -> Result<()> {
        let (timeline, checkpoint) =
            (self.number(Space::Timeline, timeline)?, self.number(Space::Checkpoint, checkpoint)?);
        self.execute("UPDATE timeline SET origin = ?2 WHERE id = ?1", params![timeline, checkpoint])
    }

    /// Prepares for facts of a kind.
    pub(crate) fn fact_table(&self, table: &str, columns: &[(&str, Kind)]) -> Result<()> {
        fact::check_shape(table, columns).map_err(|error| self.wrong(&error.to_string()))?;
        match fact::plain_table(self.transaction, table, columns).map_err(abort)? {
            Some(name) => Err(self.wrong(&format!("{table}.{name} is of another kind in this store"))),
            None => Ok(()),
        }
    }

    /// Records all facts that were added.
    pub(crate) fn record_facts(&self) -> Result<()> {
        fact::adopt(self.transaction).map_err(abort)
    }

    /// Adds a fact: the checkpoint, then a value for each column.
    pub(crate) fn fact(&self, table: &str, columns: &[(&str, Kind)], row: &[Value]) -> Result<()> {
        let [Value::Integer(checkpoint), values @ ..] = row else {
            return Err(self.wrong("a fact in it has no checkpoint"));
        };
        let checkpoint = CheckpointId(self.number(Space::Checkpoint, *checkpoint)?);
        let fits = values.len() == columns.len()
            && columns.iter().zip(values).all(|((_, kind), value)| fact::fits(*kind, value));
        if !fits {
            return Err(self.wrong(&format!("a row of {table} is not what its columns say")));
        }
        let names = columns.iter().map(|(name, _)| *name);
        fact::plain_insert(self.transaction, checkpoint, table, names, values).map_err(abort)
    }

    /// Adds the changes of a checkpoint, and a full map where there is one.
    pub(crate) fn changes(
        &self,
        checkpoint: CheckpointId,
        changes: &[(Gfn, ContentRef)],
        hash: &Hash,
        (distance, rows): (u64, u64),
        full: Option<&Keyframe>,
    ) -> Result<()> {
        page_version::insert(self.transaction, checkpoint, changes).map_err(abort)?;
        self.execute(
            "UPDATE checkpoint SET changes_hash = ?2, keyframe_distance = ?3, keyframe_rows = ?4 WHERE id = ?1",
            params![checkpoint.0, hash, distance, rows],
        )?;
        match full {
            Some(full) => page_version::insert_keyframe(self.transaction, checkpoint, full).map_err(abort),
            None => Ok(()),
        }
    }

    /// Adds the changes of a disk at a checkpoint.
    pub(crate) fn blocks(
        &self,
        checkpoint: CheckpointId,
        version: NewDiskVersion<'_>,
        hash: Hash,
    ) -> Result<()> {
        disk::insert(self.transaction, checkpoint, &[version], |_, _| hash).map_err(abort)
    }

    /// Adds the state of a checkpoint.
    pub(crate) fn state(&self, checkpoint: CheckpointId, state: &StoredState) -> Result<()> {
        state::insert(self.transaction, checkpoint, state).map_err(abort)
    }

    /// A checkpoint's parent.
    pub(crate) fn parent(&self, checkpoint: CheckpointId) -> Result<Option<CheckpointId>> {
        let find = || {
            let mut statement =
                self.transaction.prepare_cached("SELECT parent FROM checkpoint WHERE id = ?1")?;
            statement.query_row([checkpoint.0], |row| row.get::<_, Option<_>>(0))
        };
        Ok(find().map_err(sql_error)?.map(CheckpointId))
    }

    /// The imported part of a checkpoint.
    pub(crate) fn link(&self, checkpoint: CheckpointId) -> Result<Link> {
        // A missing hash is no link yet.
        page_version::link(self.transaction, checkpoint)
            .map_err(|_| self.wrong("the changes of a checkpoint come before its parent's"))
    }

    /// The changes of a checkpoint that was imported.
    pub(crate) fn changes_at(&self, checkpoint: CheckpointId) -> Result<Vec<(Gfn, ContentRef)>> {
        page_version::changes(self.transaction, checkpoint).map_err(abort)
    }

    /// A full map that was added.
    pub(crate) fn keyframe(&self, checkpoint: CheckpointId) -> Result<Option<Keyframe>> {
        page_version::keyframe(self.transaction, checkpoint).map_err(abort)
    }

    /// The changes of a disk that were imported, and the full map if one was added.
    #[expect(clippy::type_complexity, reason = "a list, and a map")]
    pub(crate) fn blocks_at(
        &self,
        checkpoint: CheckpointId,
        disk: DiskId,
    ) -> Result<(Vec<(u64, ContentRef)>, Option<Keyframe>)> {
        disk::changes(self.transaction, checkpoint, disk)
            .and_then(|changes| Ok((changes, disk::keyframe(self.transaction, checkpoint, disk)?)))
            .map_err(abort)
    }

    /// Sets the machine's position, given by the archive's numbers, and records the operation.
    pub(crate) fn set_position(
        &self,
        timeline: i64,
        checkpoint: i64,
        operation: &NewOperation<'_>,
    ) -> Result<Position> {
        let position = Position {
            timeline: TimelineId(self.number(Space::Timeline, timeline)?),
            checkpoint: CheckpointId(self.number(Space::Checkpoint, checkpoint)?),
        };
        let here = NewOperation { before: Some(position), after: Some(position), ..*operation };
        position::set(self.transaction, self.machine, position)
            .and_then(|()| operation::insert(self.transaction, &here))
            .map_err(sql_error)?;
        Ok(position)
    }

    /// An error in the archive.
    pub(crate) fn wrong(&self, what: &str) -> Error {
        not_importable(self.path, what)
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<()> {
        let run = || self.transaction.prepare_cached(sql)?.execute(values);
        run().map(|_| ()).map_err(sql_error)
    }
}

fn not_importable(path: &Path, what: &str) -> Error {
    Error::NotReadable { path: path.to_owned(), what: what.to_owned() }
}

fn sql_error(source: rusqlite::Error) -> Error {
    Error::Catalogue { doing: "importing a machine", source }
}

fn abort(abort: Abort) -> Error {
    match abort {
        Abort::Sql(source) => sql_error(source),
        Abort::Named(error) => error,
    }
}
