//! The contents of a report.

use retrovisor_snapshot::Verdict;
use serde::Serialize;

use crate::config::Config;
use crate::explain::Explanation;
use crate::feature::Feature;

/// The contents of a report. [`Report::to_html`] formats it as HTML, serde as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine's name.
    pub machine: String,
    /// Its driver.
    pub driver: String,
    /// The configuration of the evaluator.
    pub config: Config,
    /// Number of clean checkpoints in the baseline; `None` while it is being learnt.
    pub baseline_checkpoints: Option<usize>,
    /// The checkpoints, oldest first; at most the newest thousand.
    pub checkpoints: Vec<Point>,
    /// Number of older checkpoints, which the report leaves out.
    pub older_checkpoints: usize,
    /// The incidents, oldest first.
    pub incidents: Vec<Incident>,
    /// The operations on the machine, oldest first.
    pub operations: Vec<Operation>,
    /// The definitions of the features.
    pub features: &'static [Feature],
}

/// One checkpoint on the page.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Its short name.
    pub name: String,
    /// Its number on the machine.
    pub sequence: u64,
    /// The sequence number of its parent.
    pub parent: Option<u64>,
    /// Its timeline.
    pub timeline: i64,
    /// The label that a user gave it.
    pub label: Option<String>,
    /// The trigger of the checkpoint.
    pub kind: String,
    /// When it was taken: milliseconds since 1970 UTC.
    pub taken_at_ms: i64,
    /// Guest uptime, in seconds.
    pub uptime_s: Option<f64>,
    /// Its verdict.
    pub verdict: Verdict,
    /// Minus the decimal logarithm of the p-value.
    pub score: f64,
    /// Whether the baseline was still being learnt.
    pub learning: bool,
    /// The reasons for the verdict.
    pub reasons: Vec<String>,
    /// A panic or oops of the guest's kernel, if it shows one.
    pub failure: Option<String>,
    /// How long the guest was paused for it.
    pub pause_us: u64,
    /// Pages that the guest had written.
    pub dirty_pages: u64,
    /// Bytes that it added to the store.
    pub stored_bytes: u64,
}

/// One incident on the page.
#[derive(Clone, Debug, Serialize)]
pub struct Incident {
    /// Its short id, if the service recorded the incident.
    pub name: Option<String>,
    /// One line for display.
    pub summary: String,
    /// The action taken, if one was recorded.
    pub action: Option<String>,
    /// Sequence of the checkpoint that raised the alarm.
    pub alarm: u64,
    /// Sequence of the first bad checkpoint.
    pub onset: u64,
    /// Sequence of the last good checkpoint before it.
    pub last_good: Option<u64>,
    /// Checkpoints from the first bad one to the alarm: zero when the first bad one raised it.
    pub delay_checkpoints: usize,
    /// Evidence and causes.
    pub explanation: Explanation,
    /// The strongest features over time.
    pub series: Vec<Series>,
}

/// One feature over time.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// The feature's name.
    pub feature: &'static str,
    /// Its range in the baseline.
    pub usual: Option<(f64, f64)>,
    /// Sequence and raw value.
    pub values: Vec<(u64, f64)>,
}

/// One operation on the page.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// Its short id.
    pub name: String,
    /// The kind of operation.
    pub kind: String,
    /// When it was done: milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// The checkpoint of the machine before it, by sequence.
    pub from: Option<u64>,
    /// The checkpoint of the machine after it.
    pub to: Option<u64>,
}

impl Report {
    /// The checkpoint with a sequence number.
    pub(crate) fn point(&self, sequence: u64) -> Option<&Point> {
        let at = self.checkpoints.binary_search_by_key(&sequence, |point| point.sequence).ok()?;
        self.checkpoints.get(at)
    }
}
