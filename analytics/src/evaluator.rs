//! Evaluates the checkpoints of one machine in order.

use std::collections::{BTreeMap, HashMap, VecDeque};

use retrovisor_snapshot::{CheckpointId, Verdict};

use crate::config::Config;
use crate::evaluation::{Evaluation, score};
use crate::feature::FEATURES;
use crate::model::{Assessment, Model, Observation};
use crate::order::median;
use crate::reason;
use crate::sample::Sample;
use crate::verdict::{EvaluatedCheckpoint, Finding, Verdicts};
use crate::view::View;

/// Evaluates one machine's checkpoints in order, against a baseline learnt from clean ones.
///
/// Its state is a function of the samples evaluated so far: evaluating the same samples again, read from the snapshot
/// database, gives the same verdicts. Rates are per guest time, so rollbacks and uneven intervals do not distort them.
#[derive(Clone, Debug)]
pub struct Evaluator {
    config: Config,
    /// What was learnt of the boot of the checkpoint that was evaluated last.
    learnt: Learnt,
    /// The number of that boot; the first is 0.
    boot: u64,
    /// What was learnt of other boots: a rollback across a reboot returns to one.
    other_boots: BTreeMap<u64, Learnt>,
    verdicts: Verdicts,
    last: Option<CheckpointId>,
    resumed_from: Option<CheckpointId>,
}

/// What is learnt of one boot of the guest.
#[derive(Clone, Debug, Default)]
struct Learnt {
    baseline: VecDeque<Observation>,
    model: Option<Model>,
    /// Observations added to the baseline since the model was fitted.
    unfitted: usize,
    pending: HashMap<CheckpointId, Observation>,
    /// The newest clean checkpoints' intervals, in guest seconds.
    intervals_s: VecDeque<f64>,
}

/// An evaluation with the observation it was made from.
pub(crate) struct Evaluated {
    pub(crate) evaluation: Evaluation,
    pub(crate) observation: Observation,
}

/// Bound on the first interval after a rollback, in usual intervals.
const RESUMED_MAX: f64 = 1.5;
/// The usual interval is the median of the newest ones: at least and at most this many.
const INTERVALS_MIN: usize = 5;
const INTERVALS_MAX: usize = 15;
/// Boots whose baseline is kept, the newest.
const BOOTS_MAX: usize = 8;
/// Bound on the reasons of one checkpoint.
const REASONS_MAX: usize = 12;
/// Bound on the clean checkpoints that wait for clean successors; the oldest are dropped first.
const PENDING_MAX: usize = 256;

impl Evaluator {
    /// An evaluator without a baseline.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            learnt: Learnt::default(),
            boot: 0,
            other_boots: BTreeMap::new(),
            verdicts: Verdicts::default(),
            last: None,
            resumed_from: None,
        }
    }

    /// Whether the baseline is still being learnt: only invariants are evaluated.
    #[must_use]
    pub fn is_learning(&self) -> bool {
        self.learnt.model.is_none()
    }

    /// Number of clean checkpoints in the baseline.
    #[must_use]
    pub fn baseline_len(&self) -> usize {
        self.learnt.baseline.len()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn baseline(&self) -> impl Iterator<Item = &Observation> {
        self.learnt.baseline.iter()
    }

    /// Whether enough clean checkpoints followed this one.
    pub(crate) fn is_good(&self, checkpoint: CheckpointId) -> bool {
        self.verdicts.is_good(checkpoint)
    }

    pub(crate) fn model(&self) -> Option<&Model> {
        self.learnt.model.as_ref()
    }

    /// Records a rollback: the next checkpoint follows this one, not the one evaluated last. Alarms of the abandoned
    /// timeline do not carry over. The parent of the next sample has the same effect.
    pub fn rolled_back_to(&mut self, checkpoint: CheckpointId) {
        self.resumed_from = Some(checkpoint);
    }

    /// Evaluates a checkpoint. `parent` is the sample before it on its timeline; without a parent there are no rates.
    pub fn evaluate(&mut self, sample: &Sample, parent: Option<&Sample>) -> Evaluation {
        self.evaluate_fully(sample, parent).evaluation
    }

    pub(crate) fn evaluate_fully(&mut self, sample: &Sample, parent: Option<&Sample>) -> Evaluated {
        let parent = parent.filter(|parent| Some(parent.checkpoint) == sample.parent);
        // After a rollback the guest works off a backlog: one outlying checkpoint is no evidence.
        let resumed = self.resumes(sample);
        self.last = Some(sample.checkpoint);
        self.resumed_from = None;
        let rebooted = parent.is_some_and(|parent| sample.rebooted_since(parent));
        let stopped_s = parent.and_then(|parent| sample.clock_stopped_s(parent));
        self.enter_boot(sample, rebooted);
        // Counters restart with a boot: they cannot be compared with those of another boot.
        let parent = parent.filter(|_| !rebooted);

        let mut view = View::new(sample, parent);
        if resumed
            && view.interval.is_some_and(|interval| interval.seconds > RESUMED_MAX * self.usual_interval_s())
        {
            // The guest's clock advanced while the guest did not run: rates over that time are not meaningful.
            view = View::without_rates(sample, parent);
        }
        let observation = view.observation(self.learnt.model.as_ref().map(|model| &model.profiles));
        let assessment = self.learnt.model.as_ref().map(|model| model.assess(&observation));
        let mut evaluation = Evaluation {
            checkpoint: sample.checkpoint,
            verdict: Verdict::Unknown,
            score: assessment.as_ref().map_or(0.0, |a| score(a.p_value)),
            p_value: assessment.as_ref().map(|a| a.p_value),
            reasons: reason::rules(sample, rebooted, stopped_s),
            features: named_features(&observation),
            detectors: assessment.as_ref().map(|a| a.detectors.clone()).unwrap_or_default(),
            learning: self.learnt.model.is_none(),
            settled: Vec::new(),
        };
        let mut alarmed = Vec::new();
        // Missing facts deviate from every baseline: that is no evidence.
        if let (Some(model), Some(assessment)) = (&self.learnt.model, &assessment)
            && sample.is_readable()
        {
            alarmed = self.alarmed_features(assessment);
            evaluation.verdict = self.verdict(sample, assessment, &alarmed, resumed);
            if evaluation.verdict != Verdict::Unknown {
                evaluation.reasons.extend(reason::statistical(
                    &view,
                    model,
                    &observation,
                    assessment,
                    &alarmed,
                ));
            }
        }
        if !sample.violations.is_empty() {
            evaluation.verdict = Verdict::Bad;
            evaluation.score = Evaluation::SCORE_MAX;
        }
        if stopped_s.is_some() && sample.capture.dirty_pages > 0.0 && evaluation.verdict == Verdict::Unknown {
            // Memory is written and the clock does not advance: a processor runs without timer interrupts.
            evaluation.verdict = Verdict::Suspect;
        }
        evaluation.reasons.truncate(REASONS_MAX);
        let state = match () {
            () if !evaluation.is_clean() => Finding::Alarm(std::mem::take(&mut alarmed)),
            () if stopped_s.is_some() || !sample.is_readable() => Finding::Unreadable,
            () => Finding::Clean,
        };
        evaluation.settled = self.record_state(sample, state, &observation, view.interval.is_some());
        Evaluated { evaluation, observation }
    }

    /// Selects what was learnt of the boot of a checkpoint; nothing for a new boot.
    fn enter_boot(&mut self, sample: &Sample, rebooted: bool) {
        let of = |checkpoint: CheckpointId| self.verdicts.get(checkpoint).map(|known| known.boot);
        let newest = self.other_boots.keys().next_back().copied().unwrap_or(0).max(self.boot);
        let boot = match (of(sample.checkpoint), sample.parent.and_then(of)) {
            (Some(boot), _) => boot,
            (None, _) if rebooted => newest + 1,
            (None, parent) => parent.unwrap_or(self.boot),
        };
        if boot == self.boot {
            return;
        }
        let entered = self.other_boots.remove(&boot).unwrap_or_default();
        self.other_boots.insert(self.boot, std::mem::replace(&mut self.learnt, entered));
        self.boot = boot;
        while self.other_boots.len() > BOOTS_MAX {
            self.other_boots.pop_first();
        }
    }

    /// Whether the machine was rolled back between this checkpoint and its parent.
    fn resumes(&self, sample: &Sample) -> bool {
        let Some(parent) = sample.parent else { return false };
        self.resumed_from == Some(parent)
            || self.last.is_some_and(|last| last != parent)
            || self.verdicts.get(parent).is_some_and(|known| known.timeline != sample.timeline)
    }

    /// The features that deviate enough to be named, the strongest first.
    fn alarmed_features(&self, assessment: &Assessment) -> Vec<usize> {
        let mut far: Vec<usize> = (0..FEATURES.len())
            .filter(|at| assessment.evidence[*at].abs() >= self.config.deviation_min)
            .collect();
        far.sort_by(|a, b| assessment.evidence[*b].abs().total_cmp(&assessment.evidence[*a].abs()));
        far
    }

    fn verdict(&self, sample: &Sample, assessment: &Assessment, alarmed: &[usize], resumed: bool) -> Verdict {
        let Some(strongest) = alarmed.first().map(|at| assessment.evidence[*at].abs()) else {
            return Verdict::Unknown;
        };
        if assessment.p_value >= self.config.alpha {
            return Verdict::Unknown;
        }
        let extreme = alarmed.len() >= self.config.extreme_features
            && strongest >= self.config.deviation_extreme
            && assessment.p_value < self.config.alpha_extreme
            && !resumed;
        let confirmed = sample.parent.and_then(|parent| self.verdicts.get(parent)).is_some_and(|known| {
            match &known.finding {
                Finding::Alarm(before) => before.is_empty() || before.iter().any(|at| alarmed.contains(at)),
                _ => false,
            }
        });
        if extreme || confirmed { Verdict::Bad } else { Verdict::Suspect }
    }

    /// Records an evaluated checkpoint, and marks as good those that enough clean ones have followed.
    fn record_state(
        &mut self,
        sample: &Sample,
        finding: Finding,
        observation: &Observation,
        has_rates: bool,
    ) -> Vec<CheckpointId> {
        let is_clean = finding == Finding::Clean;
        let is_new = self.verdicts.insert(
            sample.checkpoint,
            EvaluatedCheckpoint {
                boot: self.boot,
                parent: sample.parent,
                timeline: sample.timeline,
                finding,
            },
        );
        if !is_clean || !is_new {
            return Vec::new();
        }
        // Only checkpoints at the usual interval join the baseline: the others, taken on request or by a rollback, are
        // mostly noise.
        let teaches = has_rates && self.is_usual_interval(observation.moment.interval_s);
        if self.learnt.model.is_some() {
            if teaches {
                self.hold(observation.clone());
            }
        } else if teaches {
            self.learnt.baseline.push_back(observation.clone());
            if self.learnt.baseline.len() >= self.config.baseline() {
                self.fit();
            }
        }
        // Without a model only invariants were checked, which is not enough for a good verdict. Once there is a model,
        // the checkpoints from which it was learnt count like others.
        if self.learnt.model.is_none() { Vec::new() } else { self.settle(sample.checkpoint) }
    }

    /// Whether an interval is not much shorter than the newest ones; adapts when they become shorter.
    fn is_usual_interval(&mut self, interval_s: f64) -> bool {
        let usual = self.usual_interval_s();
        self.learnt.intervals_s.push_back(interval_s);
        if self.learnt.intervals_s.len() > INTERVALS_MAX {
            self.learnt.intervals_s.pop_front();
        }
        usual.is_infinite() || interval_s >= usual / 2.0
    }

    /// The usual guest time between checkpoints; infinite while too few are known.
    fn usual_interval_s(&self) -> f64 {
        if self.learnt.intervals_s.len() < INTERVALS_MIN {
            return f64::INFINITY;
        }
        median(self.learnt.intervals_s.iter().copied()).unwrap_or(f64::INFINITY)
    }

    fn hold(&mut self, observation: Observation) {
        self.learnt.pending.insert(observation.checkpoint, observation);
        if self.learnt.pending.len() > PENDING_MAX
            && let Some(oldest) = self.learnt.pending.keys().min().copied()
        {
            self.learnt.pending.remove(&oldest);
        }
    }

    /// Marks as good those checkpoints that enough clean ones have followed, and adds them to the baseline.
    fn settle(&mut self, newest: CheckpointId) -> Vec<CheckpointId> {
        let settled = self.verdicts.mark_good(newest, self.config.settle_checkpoints);
        for checkpoint in &settled {
            if let Some(observation) = self.learnt.pending.remove(checkpoint) {
                self.learnt.baseline.push_back(observation);
                self.learnt.unfitted += 1;
            }
        }
        while self.learnt.baseline.len() > self.config.window() {
            self.learnt.baseline.pop_front();
        }
        // Fits the model again when a tenth of the baseline is new, and after ten new checkpoints at the latest.
        if self.learnt.unfitted > 0 && self.learnt.unfitted * 10 >= self.learnt.baseline.len().min(100) {
            self.fit();
        }
        settled
    }

    fn fit(&mut self) {
        self.learnt.model = Some(Model::fit(&self.learnt.baseline.iter().collect::<Vec<_>>()));
        self.learnt.unfitted = 0;
    }
}

fn named_features(observation: &Observation) -> Vec<(String, f64)> {
    FEATURES
        .iter()
        .zip(&observation.vector)
        .filter_map(|(feature, value)| Some((feature.name.to_owned(), (*value)?)))
        .collect()
}
