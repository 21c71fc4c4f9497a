//! The facts of one checkpoint, reduced to what the statistics use.

mod failure;
mod grid;
mod log;
mod task;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use retrovisor_guest::fact::Table;
use retrovisor_snapshot::{Catalogue, CheckpointId, CheckpointRecord, TimelineId};
use serde::Serialize;

use self::grid::Grid;
pub use self::log::{Log, LogLine};
pub use self::task::Task;
pub(crate) use self::task::family;
use crate::error::{AnalyticsError, Result};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The rule: `syscall`, `hidden task`…
    pub kind: String,
    /// Its subject.
    pub object: String,
    /// The symbol involved, where there is one.
    pub symbol: Option<String>,
    /// Further text.
    pub detail: Option<String>,
    /// The expected value.
    pub expected: Option<String>,
    /// The value found.
    pub found: Option<String>,
}

impl Ord for Violation {
    /// Redirections are ordered before the changed bytes that cause them.
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |v: &Self| v.kind.ends_with("_changed");
        let texts = |v: &'_ Self| [v.symbol.clone(), v.detail.clone(), v.expected.clone(), v.found.clone()];
        key(self)
            .cmp(&key(other))
            .then_with(|| (&self.kind, &self.object).cmp(&(&other.kind, &other.object)))
            .then_with(|| texts(self).cmp(&texts(other)))
    }
}

impl PartialOrd for Violation {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Numbers that the recorder reported for the checkpoint, in pages and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Capture {
    pub(crate) dirty_pages: f64,
    pub(crate) new_pages: f64,
    pub(crate) zero_pages: f64,
    pub(crate) stored_bytes: f64,
}

/// One checkpoint's facts, reduced to what the statistics use. A sample made from new tables equals the one read from
/// the snapshot database later.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) parent: Option<CheckpointId>,
    pub(crate) timeline: TimelineId,
    pub(crate) capture: Capture,
    /// When it was taken, by the host's clock: milliseconds since 1970 UTC.
    pub(crate) taken_at_ms: i64,
    pub(crate) uptime_ns: Option<u64>,
    /// The addresses at which the kernel was loaded, which KASLR changes with each boot.
    pub(crate) placement: Option<(String, String)>,
    pub(crate) cpus: f64,
    pub(crate) tasks: Vec<Task>,
    pub(crate) modules: BTreeSet<String>,
    pub(crate) syscalls: BTreeMap<(String, i64), String>,
    pub(crate) log: Log,
    pub(crate) counters: BTreeMap<String, f64>,
    pub(crate) violations: BTreeSet<Violation>,
}

/// The tables that a sample is read from.
const TABLES: [&str; 7] =
    ["fact_kernel", "fact_task", "fact_module", "fact_syscall", "fact_log", "fact_counter", "fact_integrity"];

/// Bound on the rows of one table: a guest with more tasks than this is anomalous in any case.
const ROWS_MAX: usize = 65_536;

impl Sample {
    /// Makes a sample from the facts of a new checkpoint.
    #[must_use]
    pub fn from_tables(record: &CheckpointRecord, tables: &[Table]) -> Self {
        let mut sample = Self::empty(record);
        for name in TABLES {
            if let Some(grid) = Grid::find(tables, name) {
                sample.take(name, &grid);
            }
        }
        sample
    }

    /// Reads a sample from the snapshot database.
    pub fn load(catalogue: &Catalogue, checkpoint: CheckpointId) -> Result<Self> {
        let record = catalogue.checkpoint(checkpoint)?;
        Self::load_record(catalogue, &record)?.ok_or(AnalyticsError::NoFacts { checkpoint })
    }

    /// Like [`Sample::load`]; `None` when introspection has not read the checkpoint.
    pub(crate) fn load_record(catalogue: &Catalogue, record: &CheckpointRecord) -> Result<Option<Self>> {
        let mut sample = Self::empty(record);
        let mut any = false;
        for name in TABLES {
            let rows = catalogue.facts(record.id, name)?;
            any |= !rows.rows.is_empty();
            sample.take(name, &Grid::new(&rows.columns, &rows.rows));
        }
        Ok(any.then_some(sample))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "page and byte counts of one checkpoint are far below 2^53"
    )]
    fn empty(record: &CheckpointRecord) -> Self {
        Self {
            checkpoint: record.id,
            parent: record.parent,
            timeline: record.timeline,
            capture: Capture {
                dirty_pages: record.dirty_pages as f64,
                new_pages: record.new_pages as f64,
                zero_pages: record.zero_pages as f64,
                stored_bytes: record.stored_bytes as f64,
            },
            taken_at_ms: record.taken_at_ms,
            uptime_ns: None,
            placement: None,
            cpus: 1.0,
            tasks: Vec::new(),
            modules: BTreeSet::new(),
            syscalls: BTreeMap::new(),
            log: Log::default(),
            counters: BTreeMap::new(),
            violations: BTreeSet::new(),
        }
    }

    fn take(&mut self, table: &str, grid: &Grid<'_>) {
        match table {
            "fact_kernel" => {
                if let Some(row) = grid.rows(1).next() {
                    self.uptime_ns = row.count("uptime_ns");
                    self.cpus = row.number("cpus").unwrap_or(1.0).clamp(1.0, 4096.0);
                    self.placement = row.text("virtual_slide").zip(row.text("physical_base"));
                    self.violations.extend(failure::of_kernel(row));
                }
            }
            "fact_task" => {
                self.tasks = grid.rows(ROWS_MAX).filter_map(Task::read).collect();
                self.tasks.sort_by_key(Task::identity);
                self.tasks.dedup_by_key(|task| task.identity());
            }
            "fact_module" => self.modules = grid.rows(ROWS_MAX).filter_map(|row| row.text("name")).collect(),
            "fact_syscall" => {
                self.syscalls = grid
                    .rows(ROWS_MAX)
                    .filter_map(|row| {
                        let number = i64::try_from(row.count("number")?).ok()?;
                        Some(((row.text("via")?, number), row.text("target")?))
                    })
                    .collect();
            }
            "fact_log" => {
                self.log = Log::read(grid);
                self.violations.extend(failure::of_log(&self.log));
            }
            "fact_counter" => {
                self.counters = grid
                    .rows(ROWS_MAX)
                    .filter_map(|row| Some((row.text("name")?, row.number("value")?)))
                    .collect();
            }
            "fact_integrity" => {
                self.violations.extend(grid.rows(ROWS_MAX).map(|row| Violation {
                    kind: row.text("kind").unwrap_or_default(),
                    object: row.text("object").unwrap_or_default(),
                    symbol: row.text("symbol"),
                    detail: row.text("detail"),
                    expected: row.text("expected"),
                    found: row.text("found"),
                }));
            }
            _ => {}
        }
    }

    /// The checkpoint of the sample.
    #[must_use]
    pub fn checkpoint(&self) -> CheckpointId {
        self.checkpoint
    }

    /// The checkpoint before it on its timeline.
    #[must_use]
    pub fn parent(&self) -> Option<CheckpointId> {
        self.parent
    }

    /// Whether enough was read to evaluate the checkpoint.
    pub(crate) fn is_readable(&self) -> bool {
        self.uptime_ns.is_some() && !self.tasks.is_empty()
    }

    /// Whether the guest booted again after an earlier checkpoint of its line.
    pub(crate) fn rebooted_since(&self, parent: &Self) -> bool {
        let went_back = self.uptime_ns.zip(parent.uptime_ns).is_some_and(|(now, then)| now < then);
        let moved =
            self.placement.as_ref().zip(parent.placement.as_ref()).is_some_and(|(now, then)| now != then);
        went_back || moved
    }

    /// How long the guest's clock stopped, by the host's clock; `None` if it advanced or the time was short.
    pub(crate) fn clock_stopped_s(&self, parent: &Self) -> Option<f64> {
        // The clock of an idle guest may not advance for seconds.
        const STOPPED_MS_MIN: u64 = 10_000;
        let stands = self.uptime_ns.is_some() && self.uptime_ns == parent.uptime_ns;
        let passed_ms = u64::try_from(self.taken_at_ms.saturating_sub(parent.taken_at_ms)).unwrap_or(0);
        (stands && passed_ms >= STOPPED_MS_MIN).then(|| u64_f64(passed_ms) / 1000.0)
    }

    /// The guest's own uptime, in seconds.
    #[must_use]
    pub fn uptime_s(&self) -> Option<f64> {
        self.uptime_ns.map(|ns| u64_f64(ns) / 1e9)
    }

    /// The number of threads.
    #[must_use]
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The broken invariants.
    pub fn violations(&self) -> impl Iterator<Item = &Violation> {
        self.violations.iter()
    }

    /// A counter by its kernel name.
    #[must_use]
    pub fn counter(&self, name: &str) -> Option<f64> {
        self.counters.get(name).copied()
    }
}

/// Statistics work in `f64`; counters beyond 2^53 lose their last bits.
#[expect(clippy::cast_precision_loss, reason = "stated above")]
pub(crate) fn u64_f64(number: u64) -> f64 {
    number as f64
}

/// A number of things held in memory, as `f64`.
pub(crate) fn count_f64(number: usize) -> f64 {
    u64_f64(number as u64)
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.replace('_', " "), self.object)?;
        if let (Some(expected), Some(found)) = (&self.expected, &self.found)
            && !(expected.is_empty() && found.is_empty())
        {
            write!(f, ": {found} where {expected} must be")?;
        }
        match &self.detail {
            Some(detail) if !detail.is_empty() => write!(f, " ({detail})"),
            _ => Ok(()),
        }
    }
}
