//! A series: the facts of up to 512 checkpoints of a machine, as spans.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use retrovisor_guest::fact::Value;
use rusqlite::{Connection, OptionalExtension, Transaction, params, params_from_iter};

use super::super::abort::Abort;
use super::super::rows::{Cell, cell};
use super::layout::{self, Layout};
use super::volatile::Cells;
use crate::error::Error;

/// Most checkpoints of a series. A series begins with all rows: fewer checkpoints take more space, more take longer to
/// read, because all spans of a series are looked at.
const CHECKPOINTS_MAX: u64 = 512;
/// A series also ends when the spans added since its first checkpoint outnumber those of the first, or this.
const ADDED_MIN: u64 = 16_384;

/// Identifies rows with equal stable cells: a part of the BLAKE3 hash of these.
type Key = [u8; 16];

/// The facts of one kind of a checkpoint.
pub(super) struct Facts<'a> {
    pub(super) layout: Arc<Layout>,
    /// For each column of the layout, which cell of a row it is.
    pub(super) order: Vec<Option<usize>>,
    pub(super) rows: Cow<'a, [Vec<Value>]>,
}

impl Facts<'_> {
    fn cell<'r>(&self, row: &'r [Value], column: usize) -> &'r Value {
        match self.order.get(column).copied().flatten().and_then(|at| row.get(at)) {
            // As SQLite keeps it.
            Some(Value::Real(number)) if number.is_nan() => &Value::Null,
            Some(value) => value,
            None => &Value::Null,
        }
    }
}

/// A span that contains the newest checkpoint of its series.
#[derive(Clone, Copy)]
struct Alive {
    slot: u32,
    /// Whether its end is recorded: a checkpoint after it was removed.
    ended: bool,
}

/// The spans of one kind.
#[derive(Default)]
struct Spans {
    next_slot: u32,
    /// Those that contain the newest checkpoint. Equal rows have a span each.
    alive: HashMap<Key, Vec<Alive>>,
}

/// What the volatile values of the next checkpoints are compared with.
struct Base {
    observation: i64,
    values: Cells,
    stored_bytes: u64,
    /// Bytes of the observations based on it.
    based_bytes: u64,
}

/// The newest series of a machine, as the next checkpoint continues it.
pub(super) struct Tip {
    pub(super) machine: i64,
    series: i64,
    /// Its newest checkpoint.
    pub(super) checkpoint: i64,
    checkpoints: u64,
    /// Spans of its first checkpoint, and those added since.
    first: u64,
    added: u64,
    base: Option<Base>,
    spans: HashMap<i64, Spans>,
}

impl Tip {
    /// The newest series of a machine, from the catalogue; `None` if it has none that can go on.
    pub(super) fn load(reader: &Connection, machine: i64) -> Result<Option<Self>, Abort> {
        let newest: Option<i64> = reader
            .prepare_cached("SELECT max(id) FROM series WHERE machine = ?1")?
            .query_row([machine], |row| row.get(0))?;
        let Some(series) = newest else { return Ok(None) };
        let (checkpoint, checkpoints): (Option<i64>, u64) = reader
            .prepare_cached("SELECT max(checkpoint), count(checkpoint) FROM observation WHERE series = ?1")?
            .query_row([series], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let Some(checkpoint) = checkpoint else { return Ok(None) };
        // After damage a new series begins.
        let Some(base) = load_base(reader, checkpoint)? else { return Ok(None) };
        let mut tip = Self {
            machine,
            series,
            checkpoint,
            checkpoints,
            first: 0,
            added: 0,
            base: Some(base),
            spans: HashMap::new(),
        };
        for layout in layout::all(reader)? {
            tip.load_spans(reader, &layout)?;
        }
        Ok(Some(tip))
    }

    fn load_spans(&mut self, reader: &Connection, layout: &Layout) -> Result<(), Abort> {
        let span = layout.span();
        let (next_slot, first, all): (u32, u64, u64) = reader
            .prepare_cached(&format!(
                "SELECT ifnull(max(_slot) + 1, 0),
                        count(*) FILTER (WHERE _first = (SELECT min(checkpoint) FROM observation WHERE series = ?1)),
                        count(*) FROM \"{span}\" WHERE _series = ?1"
            ))?
            .query_row([self.series], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        self.first += first;
        self.added += all - first;
        let stable: Vec<_> = layout.stable().collect();
        let names: Vec<_> = stable.iter().map(|at| format!(", \"{}\"", layout.fields[*at].name)).collect();
        let mut statement = reader.prepare_cached(&format!(
            "SELECT _slot, _last IS NOT NULL{} FROM \"{span}\"
             WHERE _series = ?1 AND ?2 BETWEEN _first AND ifnull(_last, ?2) ORDER BY _slot DESC",
            names.concat()
        ))?;
        let mut rows = statement.query([self.series, self.checkpoint])?;
        let spans = self.spans.entry(layout.id).or_default();
        spans.next_slot = next_slot;
        while let Some(row) = rows.next()? {
            let mut hasher = blake3::Hasher::new();
            for at in 0..stable.len() {
                hash(&mut hasher, &cell(row.get_ref(at + 2)?));
            }
            let alive = Alive { slot: row.get(0)?, ended: row.get(1)? };
            spans.alive.entry(key(&hasher)).or_default().push(alive);
        }
        Ok(())
    }

    /// A new series, which begins with a checkpoint.
    fn begin(transaction: &Transaction<'_>, machine: i64, checkpoint: i64) -> rusqlite::Result<Self> {
        transaction.prepare_cached("INSERT INTO series (machine) VALUES (?1)")?.execute([machine])?;
        Ok(Self {
            machine,
            series: transaction.last_insert_rowid(),
            checkpoint,
            checkpoints: 0,
            first: 0,
            added: 0,
            base: None,
            spans: HashMap::new(),
        })
    }

    /// How many rows it has in memory.
    pub(super) fn rows(&self) -> usize {
        let alive = |spans: &Spans| spans.alive.values().map(Vec::len).sum::<usize>();
        self.spans.values().map(alive).sum::<usize>() + self.base.as_ref().map_or(0, |base| base.values.len())
    }

    fn continues(&self, checkpoint: i64) -> bool {
        self.checkpoint < checkpoint
            && self.checkpoints < CHECKPOINTS_MAX
            && self.added <= self.first.max(ADDED_MIN)
    }

    /// Records all facts of a checkpoint that has none: in the series of `tip` if that is older and not full, else in
    /// a new one. Returns the series to continue.
    pub(super) fn append(
        transaction: &Transaction<'_>,
        tip: Option<Self>,
        (machine, checkpoint): (i64, i64),
        facts: &[Facts<'_>],
    ) -> Result<Self, Abort> {
        let mut tip = match tip.filter(|tip| tip.continues(checkpoint)) {
            Some(tip) => tip,
            None => Self::begin(transaction, machine, checkpoint)?,
        };
        let mut values = Cells::default();
        let mut before = std::mem::take(&mut tip.spans);
        let mut added = 0;
        for facts in facts {
            let spans = before.remove(&facts.layout.id).unwrap_or_default();
            let (spans, new) = tip.replace(transaction, facts, spans, checkpoint, &mut values)?;
            tip.spans.insert(facts.layout.id, spans);
            added += new;
        }
        // Kinds of which this checkpoint has no facts.
        for (kind, spans) in before {
            if let Some(layout) = layout_of(transaction, kind, &spans)? {
                let none = Facts { layout: Arc::new(layout), order: Vec::new(), rows: Cow::Borrowed(&[]) };
                let (spans, _) = tip.replace(transaction, &none, spans, checkpoint, &mut values)?;
                tip.spans.insert(kind, spans);
            } else {
                tip.spans.insert(kind, spans);
            }
        }
        tip.observe(transaction, checkpoint, values)?;
        if tip.checkpoints == 0 {
            tip.first = added;
        } else {
            tip.added += added;
        }
        tip.checkpoints += 1;
        tip.checkpoint = checkpoint;
        Ok(tip)
    }

    /// Ends the spans of rows that are gone and begins those of new rows. Returns the spans from now on, and how many
    /// are new.
    fn replace(
        &self,
        transaction: &Transaction<'_>,
        facts: &Facts<'_>,
        before: Spans,
        checkpoint: i64,
        values: &mut Cells,
    ) -> Result<(Spans, u64), Abort> {
        let layout = &facts.layout;
        let span = layout.span();
        let (stable, volatile): (Vec<_>, Vec<_>) = (layout.stable().collect(), layout.volatile().collect());
        let names: Vec<_> = stable.iter().map(|at| format!(", \"{}\"", layout.fields[*at].name)).collect();
        let mut insert = transaction.prepare_cached(&format!(
            "INSERT INTO \"{span}\" (_series, _slot, _machine, _first{}) VALUES (?, ?, ?, ?{})",
            names.concat(),
            ", ?".repeat(names.len())
        ))?;
        let end = format!("UPDATE \"{span}\" SET _last = ?3 WHERE _series = ?1 AND _slot = ?2");
        let mut end = transaction.prepare_cached(&end)?;
        let Spans { next_slot, mut alive } = before;
        let mut after = Spans { next_slot, alive: HashMap::with_capacity(alive.len()) };
        let kind = u64::try_from(layout.id).unwrap_or(0);
        for row in facts.rows.iter() {
            let mut hasher = blake3::Hasher::new();
            for at in &stable {
                hash(&mut hasher, facts.cell(row, *at));
            }
            let key = key(&hasher);
            let slot = match alive.get_mut(&key).and_then(Vec::pop) {
                Some(Alive { slot, ended: false }) => slot,
                Some(Alive { slot, ended: true }) => {
                    end.execute(params![self.series, slot, None::<i64>])?;
                    slot
                }
                None => {
                    let slot = after.next_slot;
                    after.next_slot = slot.checked_add(1).ok_or_else(too_many)?;
                    let own = [self.series, i64::from(slot), self.machine, checkpoint].map(Value::Integer);
                    let cells = stable.iter().map(|at| facts.cell(row, *at));
                    insert.execute(params_from_iter(own.iter().chain(cells).map(Cell)))?;
                    slot
                }
            };
            after.alive.entry(key).or_default().push(Alive { slot, ended: false });
            if !volatile.is_empty() {
                let cells = volatile.iter().map(|at| facts.cell(row, *at).clone()).collect();
                values.insert(kind, slot, cells);
            }
        }
        for gone in alive.into_values().flatten().filter(|gone| !gone.ended) {
            end.execute(params![self.series, gone.slot, self.checkpoint])?;
        }
        // The first is continued first, so that equal rows keep their volatile values.
        after.alive.values_mut().for_each(|slots| slots.sort_unstable_by_key(|alive| Reverse(alive.slot)));
        let added = u64::from(after.next_slot - next_slot);
        Ok((after, added))
    }

    /// Adds the observation: the volatile values against the base, or a new base once the observations based on the
    /// last one take as much space as it does.
    fn observe(
        &mut self,
        transaction: &Transaction<'_>,
        checkpoint: i64,
        values: Cells,
    ) -> rusqlite::Result<()> {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO observation (checkpoint, series, base, volatile) VALUES (?1, ?2, ?3, ?4)",
        )?;
        let base = self.base.as_mut().filter(|base| base.based_bytes < base.stored_bytes);
        if let Some(base) = base {
            let stored = values.encode(Some(&base.values));
            base.based_bytes += stored.len() as u64;
            insert.execute(params![checkpoint, self.series, base.observation, stored])?;
            return Ok(());
        }
        let stored = values.encode(None);
        insert.execute(params![checkpoint, self.series, None::<i64>, stored])?;
        let observation = transaction.last_insert_rowid();
        self.base = Some(Base { observation, values, stored_bytes: stored.len() as u64, based_bytes: 0 });
        Ok(())
    }
}

/// Slots are numbers of 32 bits.
fn too_many() -> Abort {
    Error::Invalid { what: "facts", why: "a series of checkpoints has too many rows".to_owned() }.into()
}

/// The kind of this number, if it has spans to end.
fn layout_of(reader: &Connection, kind: i64, spans: &Spans) -> Result<Option<Layout>, Abort> {
    if spans.alive.is_empty() {
        return Ok(None);
    }
    let name: Option<String> = reader
        .prepare_cached("SELECT name FROM fact WHERE id = ?1")?
        .query_row([kind], |row| row.get(0))
        .optional()?;
    name.map_or(Ok(None), |name| layout::find(reader, &name))
}

/// The base of the newest observation of a series; `None` if it is damaged.
fn load_base(reader: &Connection, checkpoint: i64) -> Result<Option<Base>, Abort> {
    let (observation, stored, based_bytes): (i64, Vec<u8>, u64) = reader
        .prepare_cached(
            "SELECT b.id, b.volatile, (SELECT ifnull(sum(length(d.volatile)), 0) FROM observation d WHERE d.base = b.id)
             FROM observation o JOIN observation b ON b.id = ifnull(o.base, o.id) WHERE o.checkpoint = ?1",
        )?
        .query_row([checkpoint], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let stored_bytes = stored.len() as u64;
    Ok(Cells::decode(&stored, None).map(|values| Base { observation, values, stored_bytes, based_bytes }))
}

fn hash(hasher: &mut blake3::Hasher, value: &Value) {
    match value {
        Value::Null => hasher.update(&[0]),
        Value::Integer(number) => hasher.update(&[1]).update(&number.to_le_bytes()),
        Value::Real(number) => hasher.update(&[2]).update(&number.to_le_bytes()),
        Value::Text(text) => {
            hasher.update(&[3]).update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes())
        }
    };
}

fn key(hasher: &blake3::Hasher) -> Key {
    let mut key = Key::default();
    hasher.finalize_xof().fill(&mut key);
    key
}
