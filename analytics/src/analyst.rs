//! Judges one checkpoint of a machine after the other.

use std::collections::{HashMap, VecDeque};

use retrovisor_snapshot::{CheckpointId, TimelineId, Verdict};

use crate::config::Config;
use crate::feature::FEATURES;
use crate::judgement::{Judgement, score};
use crate::model::{Assessment, Model, Observation};
use crate::order::median;
use crate::reason;
use crate::sample::Sample;
use crate::view::View;

/// Learns how one machine behaves when it is well, and judges its checkpoints one after the other.
///
/// All it knows follows from the samples it was shown, in their order: shown the same ones again, from the snapshot
/// database, it comes to the same verdicts. Time is the guest's own, so that rollbacks and uneven intervals do no harm.
#[derive(Clone, Debug)]
pub struct Analyst {
    config: Config,
    baseline: VecDeque<Observation>,
    model: Option<Model>,
    /// Observations that joined the baseline since the model was fitted.
    unlearnt: usize,
    seen: HashMap<CheckpointId, Seen>,
    waiting: HashMap<CheckpointId, Observation>,
    /// The newest clean checkpoints' intervals, in guest seconds.
    intervals_s: VecDeque<f64>,
    last: Option<CheckpointId>,
    resumed_from: Option<CheckpointId>,
}

/// What became of a checkpoint that was judged.
#[derive(Clone, Debug)]
struct Seen {
    parent: Option<CheckpointId>,
    timeline: TimelineId,
    state: State,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Nothing speaks against it; too few have followed it.
    Clean,
    Good,
    /// Suspect or bad, for these features (positions).
    Alarm(Vec<usize>),
}

/// A judgement with what it rests on.
pub(crate) struct Judged {
    pub(crate) judgement: Judgement,
    pub(crate) observation: Observation,
}

/// How much longer than usual the first interval after a rollback may be.
const RESUMED_MAX: f64 = 1.5;
/// Intervals that say what is usual: at least, and at most.
const INTERVALS_MIN: usize = 5;
const INTERVALS_MAX: usize = 15;
/// Reasons given for one checkpoint, at most.
const REASONS_MAX: usize = 12;
/// Clean checkpoints kept that wait for successors; those of timelines nobody came back to are forgotten.
const WAITING_MAX: usize = 256;

impl Analyst {
    /// One that knows nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            baseline: VecDeque::new(),
            model: None,
            unlearnt: 0,
            seen: HashMap::new(),
            waiting: HashMap::new(),
            intervals_s: VecDeque::new(),
            last: None,
            resumed_from: None,
        }
    }

    /// Whether the baseline is still being learnt: only invariants are judged.
    #[must_use]
    pub fn is_learning(&self) -> bool {
        self.model.is_none()
    }

    /// Clean checkpoints that the baseline rests on.
    #[must_use]
    pub fn baseline_len(&self) -> usize {
        self.baseline.len()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn baseline(&self) -> impl Iterator<Item = &Observation> {
        self.baseline.iter()
    }

    /// Whether enough clean checkpoints followed this one.
    pub(crate) fn called_good(&self, checkpoint: CheckpointId) -> bool {
        self.seen.get(&checkpoint).is_some_and(|seen| seen.state == State::Good)
    }

    pub(crate) fn model(&self) -> Option<&Model> {
        self.model.as_ref()
    }

    /// Tells that the machine went back: the next checkpoint follows this one, not the one judged last.
    /// Suspicions of what was left behind do not carry over. The next sample's parent says the same.
    pub fn rolled_back_to(&mut self, checkpoint: CheckpointId) {
        self.resumed_from = Some(checkpoint);
    }

    /// Judges a checkpoint. `parent` is the sample it came after on its timeline; without it there are no rates.
    pub fn judge(&mut self, sample: &Sample, parent: Option<&Sample>) -> Judgement {
        self.judge_in_full(sample, parent).judgement
    }

    pub(crate) fn judge_in_full(&mut self, sample: &Sample, parent: Option<&Sample>) -> Judged {
        let parent = parent.filter(|parent| Some(parent.checkpoint) == sample.parent);
        // A guest that was just put back catches up for a moment: one wild checkpoint there proves nothing.
        let resumed = self.resumes(sample);
        self.last = Some(sample.checkpoint);
        self.resumed_from = None;

        let mut view = View::new(sample, parent);
        if resumed
            && view.interval.is_some_and(|interval| interval.seconds > RESUMED_MAX * self.usual_interval_s())
        {
            // The guest's clock went on while the guest was not: what happened in that time happened elsewhere.
            view = View::without_rates(sample, parent);
        }
        let observation = view.observation(self.model.as_ref().map(|model| &model.habits));
        let assessment = self.model.as_ref().map(|model| model.assess(&observation));
        let mut judgement = Judgement {
            checkpoint: sample.checkpoint,
            verdict: Verdict::Unknown,
            score: assessment.as_ref().map_or(0.0, |a| score(a.p_value)),
            p_value: assessment.as_ref().map(|a| a.p_value),
            reasons: reason::invariants(sample),
            features: named(&observation),
            detectors: assessment.as_ref().map(|a| a.detectors.clone()).unwrap_or_default(),
            learning: self.model.is_none(),
            settled: Vec::new(),
        };
        let mut alarmed = Vec::new();
        if let (Some(model), Some(assessment)) = (&self.model, &assessment) {
            alarmed = self.alarmed_features(assessment);
            judgement.verdict = self.verdict(sample, assessment, &alarmed, resumed);
            if judgement.verdict != Verdict::Unknown {
                judgement.reasons.extend(reason::statistical(
                    &view,
                    model,
                    &observation,
                    assessment,
                    &alarmed,
                ));
            }
        }
        if !sample.violations.is_empty() {
            judgement.verdict = Verdict::Bad;
            judgement.score = Judgement::SCORE_MAX;
        }
        judgement.reasons.truncate(REASONS_MAX);
        let state =
            if judgement.is_clean() { State::Clean } else { State::Alarm(std::mem::take(&mut alarmed)) };
        judgement.settled = self.take_note(sample, state, &observation, view.interval.is_some());
        Judged { judgement, observation }
    }

    /// Whether the machine was put back between this checkpoint and its parent.
    fn resumes(&self, sample: &Sample) -> bool {
        let Some(parent) = sample.parent else { return false };
        self.resumed_from == Some(parent)
            || self.last.is_some_and(|last| last != parent)
            || self.seen.get(&parent).is_some_and(|seen| seen.timeline != sample.timeline)
    }

    /// Features far enough out to be named, strongest first.
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
        let confirmed =
            sample.parent.and_then(|parent| self.seen.get(&parent)).is_some_and(|seen| match &seen.state {
                State::Alarm(before) => before.is_empty() || before.iter().any(|at| alarmed.contains(at)),
                _ => false,
            });
        if extreme || confirmed { Verdict::Bad } else { Verdict::Suspect }
    }

    /// Remembers a judged checkpoint, and settles those that enough clean ones have followed.
    fn take_note(
        &mut self,
        sample: &Sample,
        state: State,
        observation: &Observation,
        has_rates: bool,
    ) -> Vec<CheckpointId> {
        let clean = state == State::Clean;
        let known = self
            .seen
            .insert(sample.checkpoint, Seen { parent: sample.parent, timeline: sample.timeline, state })
            .is_some();
        if !clean || known {
            return Vec::new();
        }
        // Only checkpoints at the usual interval teach: those taken by hand, or by a rollback, are mostly noise.
        let teaches = has_rates && self.is_usual_interval(observation.moment.interval_s);
        if self.model.is_some() {
            if teaches {
                self.wait(observation.clone());
            }
        } else if teaches {
            self.baseline.push_back(observation.clone());
            if self.baseline.len() >= self.config.baseline() {
                self.fit();
            }
        }
        // Until there is a model nothing but invariants was checked: too little to call a checkpoint good.
        if self.model.is_none() { Vec::new() } else { self.settle(sample.checkpoint) }
    }

    /// Whether an interval is not much shorter than the newest ones; follows when they become shorter.
    fn is_usual_interval(&mut self, interval_s: f64) -> bool {
        let usual = self.usual_interval_s();
        self.intervals_s.push_back(interval_s);
        if self.intervals_s.len() > INTERVALS_MAX {
            self.intervals_s.pop_front();
        }
        usual.is_infinite() || interval_s >= usual / 2.0
    }

    /// The usual guest time between checkpoints; infinite while too few are known.
    fn usual_interval_s(&self) -> f64 {
        if self.intervals_s.len() < INTERVALS_MIN {
            return f64::INFINITY;
        }
        median(self.intervals_s.iter().copied()).unwrap_or(f64::INFINITY)
    }

    fn wait(&mut self, observation: Observation) {
        self.waiting.insert(observation.checkpoint, observation);
        if self.waiting.len() > WAITING_MAX
            && let Some(oldest) = self.waiting.keys().min().copied()
        {
            self.waiting.remove(&oldest);
        }
    }

    /// Walks back from a clean checkpoint for as long as everything is clean.
    fn settle(&mut self, newest: CheckpointId) -> Vec<CheckpointId> {
        let mut settled = Vec::new();
        let (mut at, mut followers) = (newest, 0);
        while let Some(seen) = self.seen.get_mut(&at) {
            if seen.state != State::Clean {
                break;
            }
            let parent = seen.parent;
            if followers >= self.config.settle_checkpoints {
                seen.state = State::Good;
                settled.push(at);
            }
            followers += 1;
            match parent {
                // A parent is always older: damaged links cannot make a circle.
                Some(parent) if parent < at => at = parent,
                _ => break,
            }
        }
        settled.reverse();
        for checkpoint in &settled {
            if let Some(observation) = self.waiting.remove(checkpoint) {
                self.baseline.push_back(observation);
                self.unlearnt += 1;
            }
        }
        while self.baseline.len() > self.config.window() {
            self.baseline.pop_front();
        }
        // Learning anew for every tenth part that is new, and for every tenth checkpoint at the latest.
        if self.unlearnt > 0 && self.unlearnt * 10 >= self.baseline.len().min(100) {
            self.fit();
        }
        settled
    }

    fn fit(&mut self) {
        self.model = Some(Model::fit(&self.baseline.iter().collect::<Vec<_>>()));
        self.unlearnt = 0;
    }
}

fn named(observation: &Observation) -> Vec<(String, f64)> {
    FEATURES
        .iter()
        .zip(&observation.vector)
        .filter_map(|(feature, value)| Some((feature.name.to_owned(), (*value)?)))
        .collect()
}
