//! All of the kernel's counters. They are not used for the verdict, but for naming what changed.

use std::collections::BTreeMap;

use crate::activity::Interval;
use crate::order::{quantile, sorted, spread};
use crate::sample::Sample;

/// Bound on the counters of one checkpoint.
const COUNTERS_MAX: usize = 1024;

/// Event counters whose names look like those of levels.
const EVENTS: [&str; 7] = [
    "nr_dirtied",
    "nr_written",
    "nr_throttled_written",
    "nr_vmscan_write",
    "nr_vmscan_immediate_reclaim",
    "nr_foll_pin_acquired",
    "nr_foll_pin_released",
];
/// Levels (current amounts) whose names look like those of event counters.
const LEVELS: [&str; 7] =
    ["load1", "load5", "load15", "total_pages", "tainted", "workingset_nodes", "poisoned_pages"];

/// Whether the counter is a level and not a count of events since boot.
fn is_level(name: &str) -> bool {
    LEVELS.contains(&name) || (name.starts_with("nr_") && !EVENTS.contains(&name))
}

/// Events per guest second, and levels as they are.
pub(crate) fn rates(
    sample: &Sample,
    parent: Option<&Sample>,
    interval: Option<Interval>,
) -> BTreeMap<String, f64> {
    let rate = |name: &str, now: f64| {
        // Time used per time passed: in processors.
        let unit = if name.ends_with("_ns") { 1e9 } else { 1.0 };
        let grown = (now - parent?.counter(name)?) / unit;
        (grown >= 0.0).then_some(grown / interval?.seconds)
    };
    sample
        .counters
        .iter()
        .take(COUNTERS_MAX)
        .filter_map(|(name, now)| {
            let value = if is_level(name) { *now } else { rate(name, *now)? };
            value.is_finite().then(|| (name.clone(), value))
        })
        .collect()
}

/// A counter outside its range.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outlier {
    pub(crate) name: String,
    /// Robust standard deviations on a logarithmic scale, signed.
    pub(crate) deviation: f64,
    pub(crate) now: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) level: bool,
}

/// Smallest standard deviation used, on the logarithmic scale.
const SPREAD_MIN: f64 = 0.35;

/// All counters by the distance from their median in clean checkpoints (BARO's robust scorer), the farthest first.
pub(crate) fn outliers<'a>(
    now: &BTreeMap<String, f64>,
    clean: impl Iterator<Item = &'a BTreeMap<String, f64>>,
) -> Vec<Outlier> {
    let mut seen: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in clean.flatten() {
        seen.entry(name).or_default().push(scaled(*value));
    }
    let mut outliers: Vec<Outlier> = now
        .iter()
        .filter_map(|(name, now)| {
            let values = sorted(seen.get(name.as_str())?.iter().copied());
            let center = quantile(&values, 0.5)?;
            let spread = spread(&values)?.max(SPREAD_MIN);
            Some(Outlier {
                name: name.clone(),
                deviation: (scaled(*now) - center) / spread,
                now: *now,
                low: values.first()?.sinh(),
                high: values.last()?.sinh(),
                level: is_level(name),
            })
        })
        .collect();
    outliers
        .sort_by(|a, b| b.deviation.abs().total_cmp(&a.deviation.abs()).then_with(|| a.name.cmp(&b.name)));
    outliers
}

/// Logarithmic far from zero, linear near it, for either sign.
fn scaled(value: f64) -> f64 {
    value.asinh()
}
