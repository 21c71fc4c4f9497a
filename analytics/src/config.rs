use serde::{Deserialize, Serialize};

/// Thresholds and window sizes of an [`crate::Evaluator`].
///
/// The defaults suit a checkpoint every half second to every minute. `docs/analytics.md` says how they were chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Checkpoints with rates that the first baseline is learnt from. At least 8 are always used.
    pub baseline_checkpoints: usize,
    /// Clean successors that make a clean checkpoint good.
    pub settle_checkpoints: usize,
    /// Good checkpoints that the baseline remembers; older ones are forgotten.
    pub window_checkpoints: usize,
    /// A checkpoint whose p-value is below this, with a feature to name, is suspect.
    pub alpha: f64,
    /// A checkpoint whose p-value is below this, with several features far out, is bad at once.
    pub alpha_extreme: f64,
    /// Robust standard deviations from which on a feature counts as evidence.
    pub deviation_min: f64,
    /// Robust standard deviations that, in one feature, make a checkpoint bad without a second one to confirm it.
    pub deviation_extreme: f64,
    /// Features that must be out by `deviation_min` as well for that: one alone may be a fault of reading.
    pub extreme_features: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            baseline_checkpoints: 20,
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
    /// Fewest checkpoints a baseline is learnt from: below that no spread means anything.
    pub const BASELINE_MIN: usize = 8;

    /// Checkpoints the first baseline needs.
    pub(crate) fn baseline(&self) -> usize {
        self.baseline_checkpoints.max(Self::BASELINE_MIN)
    }

    /// Checkpoints the baseline keeps, never fewer than it was first learnt from.
    pub(crate) fn window(&self) -> usize {
        self.window_checkpoints.max(self.baseline())
    }
}
