use retrovisor_snapshot::{CheckpointId, Verdict, VerdictRecord};
use serde::Serialize;

/// One reason for a verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// The reason as text for display. Contains names from the guest.
    pub text: String,
    /// Its subject: a feature's name, `task NAME`, or `KIND OBJECT` of a broken invariant.
    pub subject: String,
    /// Whether an invariant is broken, which is certain and needs no statistics.
    pub invariant: bool,
    /// Robust standard deviations; [`Evaluation::SCORE_MAX`] for a broken invariant.
    pub weight: f64,
}

/// The result of evaluating one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// The verdict so far. A clean checkpoint stays unknown until enough clean ones have followed it.
    pub verdict: Verdict,
    /// Minus the decimal logarithm of the p-value, at most [`Evaluation::SCORE_MAX`], which is also the score of a
    /// broken invariant.
    pub score: f64,
    /// The probability that a clean checkpoint deviates at least as much: counted down to one in the number of clean
    /// checkpoints, extrapolated below, and multiplied by the number of detectors. `None` while learning.
    pub p_value: Option<f64>,
    /// The reasons, strongest first.
    pub reasons: Vec<Reason>,
    /// The features' raw values; unavailable ones are left out.
    pub features: Vec<(String, f64)>,
    /// Each detector's name, score and own p-value.
    pub detectors: Vec<(&'static str, f64, f64)>,
    /// Whether the guest settles and there is no baseline yet: only rules without statistics were evaluated.
    pub learning: bool,
    /// Whether a lasting change was accepted with this checkpoint: a new segment of the baseline begins, and incidents
    /// that are open are closed with [`Evaluation::CHANGE_ACCEPTED`].
    pub change_accepted: bool,
    /// Earlier checkpoints that became good with this one.
    pub settled: Vec<CheckpointId>,
}

impl Evaluation {
    /// The largest score: no model here resolves p-values below 10⁻¹⁶.
    pub const SCORE_MAX: f64 = 16.0;

    /// The words with which the incident of an accepted change is closed.
    pub const CHANGE_ACCEPTED: &str = "lasting change accepted";

    /// The part that the catalogue stores.
    #[must_use]
    pub fn record(&self) -> VerdictRecord {
        VerdictRecord {
            verdict: self.verdict,
            score: self.score,
            p_value: self.p_value,
            reasons: self.reasons.iter().map(|reason| reason.text.clone()).collect(),
            features: self.features.clone(),
        }
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self.verdict, Verdict::Unknown | Verdict::Good)
    }
}

/// The score of a p-value.
pub(crate) fn score(p_value: f64) -> f64 {
    (-p_value.max(f64::MIN_POSITIVE).log10()).clamp(0.0, Evaluation::SCORE_MAX)
}
