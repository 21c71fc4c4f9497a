//! Evaluates the checkpoints of one machine in order.

use std::collections::BTreeMap;

use retrovisor_snapshot::{CheckpointId, Verdict};

use crate::boot::Boot;
use crate::config::Config;
use crate::evaluation::{Evaluation, Reason, score};
use crate::feature::FEATURES;
use crate::lasting::LastingChange;
use crate::model::{Assessment, Observation};
use crate::reason;
use crate::sample::Sample;
use crate::segment::Segment;
use crate::verdict::{EvaluatedCheckpoint, Finding, Verdicts};
use crate::view::View;

/// Evaluates one machine's checkpoints in order, against a baseline learnt from clean ones.
///
/// Its state is a function of the samples evaluated so far: evaluating the same samples again, read from the snapshot
/// database, gives the same verdicts. Rates are per guest time, so rollbacks and uneven intervals do not distort them.
#[derive(Clone, Debug)]
pub struct Evaluator {
    config: Config,
    /// What was learnt of the segment of the checkpoint that was evaluated last.
    segment: Segment,
    /// The number of that segment; the first is 0.
    number: u64,
    /// What was learnt of other segments: a rollback to before a reboot or a lasting change returns to one.
    others: BTreeMap<u64, Segment>,
    verdicts: Verdicts,
    last: Option<CheckpointId>,
    resumed_from: Option<CheckpointId>,
}

/// An evaluation with the observation it was made from.
pub(crate) struct Evaluated {
    pub(crate) evaluation: Evaluation,
    pub(crate) observation: Observation,
}

/// Bound on the first interval after a rollback, in usual intervals.
const RESUMED_MAX: f64 = 1.5;
/// Other segments that are kept, the newest.
const SEGMENTS_MAX: usize = 8;
/// Bound on the reasons of one checkpoint.
const REASONS_MAX: usize = 12;

impl Evaluator {
    /// An evaluator without a baseline.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            segment: Segment::default(),
            number: 0,
            others: BTreeMap::new(),
            verdicts: Verdicts::default(),
            last: None,
            resumed_from: None,
        }
    }

    /// Whether the guest settles and there is no baseline yet: only rules without statistics are evaluated.
    #[must_use]
    pub fn is_learning(&self) -> bool {
        self.segment.model().is_none()
    }

    /// Number of clean checkpoints in the baseline.
    #[must_use]
    pub fn baseline_len(&self) -> usize {
        self.segment.baseline().len()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// What was learnt of a checkpoint's segment; of the newest one, if that is not known any more.
    pub(crate) fn segment_of(&self, checkpoint: CheckpointId) -> &Segment {
        self.verdicts
            .get(checkpoint)
            .filter(|known| known.segment != self.number)
            .and_then(|known| self.others.get(&known.segment))
            .unwrap_or(&self.segment)
    }

    /// Whether enough clean checkpoints followed this one.
    pub(crate) fn is_good(&self, checkpoint: CheckpointId) -> bool {
        self.verdicts.is_good(checkpoint)
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
        let before = self.boot_before(sample, parent);
        let rebooted = before.as_ref().is_some_and(|before| sample.boot.is_another_than(before));
        let shown = match before {
            Some(before) if !rebooted => sample.boot.clone().after(before),
            _ => sample.boot.clone(),
        };
        let stopped_s = parent.and_then(|parent| sample.clock_stopped_s(parent));
        self.enter_segment(sample, rebooted);
        let is_healthy = sample.violations.is_empty() && sample.is_readable() && stopped_s.is_none();
        if resumed || !is_healthy {
            self.segment.recent.clear();
        }
        let accepted =
            self.segment.recent.lasting_change(&self.config).map(|change| self.begin_segment(change));
        // Counters restart with a boot: they cannot be compared with those of another boot.
        let parent = parent.filter(|_| !rebooted);

        let mut view = View::new(sample, parent);
        if resumed
            && view
                .interval
                .is_some_and(|interval| interval.seconds > RESUMED_MAX * self.segment.usual_interval_s())
        {
            // The guest's clock advanced while the guest did not run: rates over that time are not meaningful.
            view = View::without_rates(sample, parent);
        }
        let model = self.segment.model();
        let observation = view.observation(model.map(|model| &model.profiles));
        let assessment = model.map(|model| model.assess(&observation));
        let mut evaluation = Evaluation {
            checkpoint: sample.checkpoint,
            verdict: Verdict::Unknown,
            score: assessment.as_ref().map_or(0.0, |a| score(a.p_value)),
            p_value: assessment.as_ref().map(|a| a.p_value),
            reasons: reason::rules(sample, rebooted, stopped_s, accepted.as_deref()),
            features: named_features(&observation),
            detectors: assessment.as_ref().map(|a| a.detectors.clone()).unwrap_or_default(),
            learning: model.is_none(),
            change_accepted: accepted.is_some(),
            settled: Vec::new(),
        };
        let mut alarmed = Vec::new();
        // Missing facts deviate from every baseline: that is no evidence.
        if let (Some(model), Some(assessment)) = (model, &assessment)
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
        let finding = match () {
            () if !evaluation.is_clean() => Finding::Alarm(alarmed.clone()),
            () if !is_healthy => Finding::Unreadable,
            () if evaluation.learning => Finding::Settling,
            () => Finding::Clean,
        };
        let mut learnt = Learnt::default();
        let has_rates = view.interval.is_some();
        if self.record(sample, shown, finding.clone()) {
            learnt = self.learn(&observation, &finding, has_rates);
            if is_healthy && has_rates && !evaluation.learning {
                let out_of_range = if evaluation.is_clean() { Vec::new() } else { alarmed };
                self.segment.recent.push(observation.clone(), out_of_range, &self.config);
            }
        }
        evaluation.settled = learnt.good;
        evaluation.reasons.extend(learnt.note);
        evaluation.reasons.truncate(REASONS_MAX);
        Evaluated { evaluation, observation }
    }

    /// What is known of the boot of the previous checkpoint, which may be of the firmware and have no facts itself.
    fn boot_before(&self, sample: &Sample, parent: Option<&Sample>) -> Option<Boot> {
        let known = sample.parent.and_then(|parent| self.verdicts.get(parent));
        known.map(|known| known.shown.clone()).or_else(|| parent.map(|parent| parent.boot.clone()))
    }

    /// Selects what was learnt of the segment of a checkpoint; nothing for a new boot.
    fn enter_segment(&mut self, sample: &Sample, rebooted: bool) {
        let of = |checkpoint: CheckpointId| self.verdicts.get(checkpoint).map(|known| known.segment);
        let number = match (of(sample.checkpoint), sample.parent.and_then(of)) {
            (Some(number), _) => number,
            (None, _) if rebooted => self.next_number(),
            (None, parent) => parent.unwrap_or(self.number),
        };
        if number != self.number {
            let entered = self.others.remove(&number).unwrap_or_default();
            self.exchange(number, entered);
        }
    }

    /// Begins the segment after a lasting change; the reason for it.
    fn begin_segment(&mut self, change: LastingChange) -> String {
        let reason = change.reason();
        let after = Segment::after(change, &self.segment, &self.config);
        self.exchange(self.next_number(), after);
        reason
    }

    fn exchange(&mut self, number: u64, entered: Segment) {
        let mut left = std::mem::replace(&mut self.segment, entered);
        left.recent.clear();
        self.others.insert(self.number, left);
        self.number = number;
        while self.others.len() > SEGMENTS_MAX {
            self.others.pop_first();
        }
    }

    fn next_number(&self) -> u64 {
        self.others.keys().next_back().copied().unwrap_or(0).max(self.number) + 1
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
                // What was out of range in another segment may be usual in this one.
                Finding::Alarm(before) if known.segment == self.number => {
                    before.is_empty() || before.iter().any(|at| alarmed.contains(at))
                }
                _ => false,
            }
        });
        if extreme || confirmed { Verdict::Bad } else { Verdict::Suspect }
    }

    /// Records an evaluated checkpoint. Returns whether it is new.
    fn record(&mut self, sample: &Sample, shown: Boot, finding: Finding) -> bool {
        let (segment, parent, timeline) = (self.number, sample.parent, sample.timeline);
        self.verdicts
            .insert(sample.checkpoint, EvaluatedCheckpoint { segment, shown, parent, timeline, finding })
    }

    /// Learns from a checkpoint in which nothing was found, and marks as good those that enough clean ones have
    /// followed.
    fn learn(&mut self, observation: &Observation, finding: &Finding, has_rates: bool) -> Learnt {
        if !matches!(finding, Finding::Clean | Finding::Settling) {
            return Learnt::default();
        }
        // Only checkpoints at the usual interval join the baseline: the others, taken on request or by a rollback, are
        // mostly noise.
        let teaches = has_rates && self.segment.is_usual_interval(observation.moment.interval_s);
        if *finding == Finding::Clean {
            if teaches {
                self.segment.hold(observation.clone());
            }
            let good = self.mark_good(observation.checkpoint);
            return Learnt { good, note: None };
        }
        let settled = teaches.then(|| self.segment.settle(observation.clone(), &self.config)).flatten();
        let note = reason::settling(self.segment.unsettled(), settled.as_ref());
        // Without a model only rules were checked, which is not enough for a good verdict. Once there is a model, the
        // checkpoints from which it was learnt count like others.
        let good = settled.and_then(|settled| Some(settled.baseline.front()?.checkpoint)).map(|first| {
            self.verdicts.mark_settled(observation.checkpoint, first);
            self.mark_good(observation.checkpoint)
        });
        Learnt { good: good.unwrap_or_default(), note }
    }

    fn mark_good(&mut self, newest: CheckpointId) -> Vec<CheckpointId> {
        let good = self.verdicts.mark_good(newest, self.config.settle_checkpoints);
        self.segment.learn(&good, &self.config);
        good
    }
}

/// What came of learning from a checkpoint.
#[derive(Default)]
struct Learnt {
    /// Those that became good.
    good: Vec<CheckpointId>,
    /// Why the guest has not settled yet, or how it settled.
    note: Option<Reason>,
}

fn named_features(observation: &Observation) -> Vec<(String, f64)> {
    FEATURES
        .iter()
        .zip(&observation.vector)
        .filter_map(|(feature, value)| Some((feature.name.to_owned(), (*value)?)))
        .collect()
}
