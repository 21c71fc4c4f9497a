use serde::{Deserialize, Serialize};

/// Thresholds and window sizes of an [`crate::Evaluator`].
///
/// The defaults suit a checkpoint interval from half a second to a minute. `docs/analytics.md` describes how they were
/// chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Number of checkpoints with rates for the first baseline; at least 8.
    pub baseline_checkpoints: usize,
    /// The longest wait for a guest to settle, in guest seconds; at least three baselines.
    pub settling_s: f64,
    /// How long a change must last until it is accepted, in guest seconds…
    pub lasting_s: f64,
    /// … and in checkpoints.
    pub lasting_checkpoints: usize,
    /// Number of clean successors after which a clean checkpoint is good.
    pub settle_checkpoints: usize,
    /// Number of good checkpoints in the baseline; older ones are dropped.
    pub window_checkpoints: usize,
    /// A checkpoint is suspect if its p-value is below this and at least one feature can be named.
    pub alpha: f64,
    /// A checkpoint is bad at once if its p-value is below this and several features deviate far.
    pub alpha_extreme: f64,
    /// Robust standard deviations from which a feature counts as evidence.
    pub deviation_min: f64,
    /// Robust standard deviations of one feature that make a checkpoint bad without confirmation by the next one.
    pub deviation_extreme: f64,
    /// Features that must deviate by at least `deviation_min` for that: a single one may be a read error.
    pub extreme_features: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            baseline_checkpoints: 20,
            settling_s: 300.0,
            lasting_s: 120.0,
            lasting_checkpoints: 60,
            settle_checkpoints: 3,
            window_checkpoints: 200,
            alpha: 0.01,
            alpha_extreme: 1e-3,
            deviation_min: 5.0,
            deviation_extreme: 12.0,
            extreme_features: 3,
        }
    }
}

impl Config {
    /// Smallest number of checkpoints for a baseline: the spread of fewer is not meaningful.
    pub const BASELINE_MIN: usize = 8;

    /// Number of checkpoints for the first baseline.
    pub(crate) fn baseline(&self) -> usize {
        self.baseline_checkpoints.max(Self::BASELINE_MIN)
    }

    /// Number of checkpoints in the baseline, at least as many as for the first one.
    pub(crate) fn window(&self) -> usize {
        self.window_checkpoints.max(self.baseline())
    }
}
