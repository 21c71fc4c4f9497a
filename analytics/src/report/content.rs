//! The contents of a report.

use retrovisor_snapshot::Verdict;
use serde::Serialize;

use crate::config::Config;
use crate::explain::Explanation;
use crate::feature::Feature;

/// The contents of a report; as HTML by [`Report::to_html`], as JSON by serde.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine's name.
    pub machine: String,
    /// What drives it.
    pub driver: String,
    /// The configuration the verdicts were made with.
    pub config: Config,
    /// Clean checkpoints that the baseline rests on; none while it is being learnt.
    pub baseline_checkpoints: Option<usize>,
    /// The checkpoints, oldest first; at most the newest thousand.
    pub checkpoints: Vec<Point>,
    /// What went wrong, oldest first.
    pub incidents: Vec<Incident>,
    /// What was done to the machine, oldest first.
    pub operations: Vec<Operation>,
    /// What the features are.
    pub features: &'static [Feature],
}

/// One checkpoint on the page.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Its short name.
    pub name: String,
    /// Its number on the machine.
    pub sequence: u64,
    /// The number of the checkpoint it came after.
    pub parent: Option<u64>,
    /// Its timeline.
    pub timeline: i64,
    /// A label a person gave.
    pub label: Option<String>,
    /// Why it was taken.
    pub kind: String,
    /// When: milliseconds since 1970 UTC.
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
    /// The panic or oops of the guest's kernel that it shows.
    pub failure: Option<String>,
    /// How long the guest stood still for it.
    pub pause_us: u64,
    /// Pages the guest had written.
    pub dirty_pages: u64,
    /// Bytes it added to the store.
    pub stored_bytes: u64,
}

/// One incident on the page.
#[derive(Clone, Debug, Serialize)]
pub struct Incident {
    /// Its short id, where the service opened one.
    pub name: Option<String>,
    /// One line for display.
    pub summary: String,
    /// What was done about it, where that was recorded.
    pub action: Option<String>,
    /// Sequence of the checkpoint that raised the alarm.
    pub alarm: u64,
    /// Sequence of the first bad checkpoint.
    pub onset: u64,
    /// Sequence of the last good one before.
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
    /// What was done.
    pub kind: String,
    /// When: milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// Where the machine stood, by sequence.
    pub from: Option<u64>,
    /// Where it stood afterwards.
    pub to: Option<u64>,
}

impl Report {
    /// The point of a sequence number.
    pub(crate) fn point(&self, sequence: u64) -> Option<&Point> {
        let at = self.checkpoints.binary_search_by_key(&sequence, |point| point.sequence).ok()?;
        self.checkpoints.get(at)
    }
}
