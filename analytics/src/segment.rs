//! A segment: the time in which a guest behaves alike. One begins with each boot, and with each lasting change.

use std::collections::{HashMap, VecDeque};

use retrovisor_snapshot::CheckpointId;

use crate::config::Config;
use crate::lasting::{LastingChange, Recent};
use crate::model::{Model, Observation};
use crate::order::median;
use crate::settling::{Settled, Settling};

/// What is learnt of one segment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    settling: Settling,
    baseline: VecDeque<Observation>,
    model: Option<Model>,
    /// Observations added to the baseline since the model was fitted.
    unfitted: usize,
    pending: HashMap<CheckpointId, Observation>,
    /// The newest clean checkpoints' intervals, in guest seconds.
    intervals_s: VecDeque<f64>,
    pub(crate) recent: Recent,
}

/// The usual interval is the median of the newest ones: at least and at most this many.
const INTERVALS_MIN: usize = 5;
const INTERVALS_MAX: usize = 15;
/// Bound on the clean checkpoints that wait for clean successors; the oldest are dropped first.
const PENDING_MAX: usize = 256;
/// The features that compare tasks with the profiles of the baseline.
const AGAINST_PROFILES: [&str; 5] =
    ["excess_tasks", "excess_cpu_share", "excess_rss_pages", "stranger_families", "missing_families"];

impl Segment {
    /// The segment that begins with a lasting change. It was observed for so long that it is learnt at once.
    pub(crate) fn after(change: LastingChange, before: &Self, config: &Config) -> Self {
        let mut segment = Self { intervals_s: before.intervals_s.clone(), ..Self::default() };
        for mut observation in change.observations {
            // None of them exceeds the profiles that are learnt from them.
            for at in AGAINST_PROFILES.into_iter().filter_map(crate::feature::position) {
                observation.vector[at] = Some(0.0);
            }
            segment.baseline.push_back(observation);
        }
        segment.limit(config);
        segment.fit();
        segment
    }

    /// The model of the baseline; `None` while the guest settles.
    pub(crate) fn model(&self) -> Option<&Model> {
        self.model.as_ref()
    }

    pub(crate) fn baseline(&self) -> impl ExactSizeIterator<Item = &Observation> {
        self.baseline.iter()
    }

    /// Why the guest has not settled yet.
    pub(crate) fn unsettled(&self) -> Option<&str> {
        self.model.is_none().then(|| self.settling.why())
    }

    /// Adds a clean observation of a guest that settles; how it settled, if it did with this one.
    pub(crate) fn settle(&mut self, observation: Observation, config: &Config) -> Option<Settled> {
        let settled = self.settling.add(observation, config)?;
        self.settling = Settling::default();
        self.baseline.clone_from(&settled.baseline);
        self.limit(config);
        self.fit();
        Some(settled)
    }

    /// Keeps a clean observation until its checkpoint is good.
    pub(crate) fn hold(&mut self, observation: Observation) {
        self.pending.insert(observation.checkpoint, observation);
        if self.pending.len() > PENDING_MAX
            && let Some(oldest) = self.pending.keys().min().copied()
        {
            self.pending.remove(&oldest);
        }
    }

    /// Adds the observations of checkpoints that became good to the baseline.
    pub(crate) fn learn(&mut self, good: &[CheckpointId], config: &Config) {
        for checkpoint in good {
            if let Some(observation) = self.pending.remove(checkpoint) {
                self.baseline.push_back(observation);
                self.unfitted += 1;
            }
        }
        self.limit(config);
        // Fits the model again when a tenth of the baseline is new, and after ten new checkpoints at the latest.
        if self.unfitted > 0 && self.unfitted * 10 >= self.baseline.len().min(100) {
            self.fit();
        }
    }

    /// Whether an interval is not much shorter than the newest ones; adapts when they become shorter.
    pub(crate) fn is_usual_interval(&mut self, interval_s: f64) -> bool {
        let usual = self.usual_interval_s();
        self.intervals_s.push_back(interval_s);
        if self.intervals_s.len() > INTERVALS_MAX {
            self.intervals_s.pop_front();
        }
        usual.is_infinite() || interval_s >= usual / 2.0
    }

    /// The usual guest time between checkpoints; infinite while too few are known.
    pub(crate) fn usual_interval_s(&self) -> f64 {
        if self.intervals_s.len() < INTERVALS_MIN {
            return f64::INFINITY;
        }
        median(self.intervals_s.iter().copied()).unwrap_or(f64::INFINITY)
    }

    fn limit(&mut self, config: &Config) {
        while self.baseline.len() > config.window() {
            self.baseline.pop_front();
        }
    }

    fn fit(&mut self) {
        self.model = Some(Model::fit(&self.baseline.iter().collect::<Vec<_>>()));
        self.unfitted = 0;
    }
}
