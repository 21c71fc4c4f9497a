//! Explains an alarm: the first bad checkpoint, the last good one, and candidates for the cause.

use std::fmt::Write as _;

use retrovisor_snapshot::{Catalogue, CheckpointId, CheckpointKind, CheckpointRecord, Verdict};
use serde::{Deserialize, Serialize};

use crate::cause::{Cause, CauseKind, chance_level, rank};
use crate::config::Config;
use crate::error::{AnalyticsError, Result};
use crate::evaluation::Evaluation;
use crate::evaluator::Evaluator;
use crate::feature::FEATURES;
use crate::history;
use crate::model::{Assessment, Observation};
use crate::number::{range, short};
use crate::onset::{likeness, onset};
use crate::sample::{Log, Sample, Violation};
use crate::scale::Scale;
use crate::view::View;

/// The first bad checkpoint, the last good one, and candidates for the cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The checkpoint that is explained.
    pub alarm: CheckpointId,
    /// The first bad checkpoint: the deviation persists from it up to the alarm.
    pub onset: CheckpointId,
    /// The newest good checkpoint before the onset on the path to the alarm. If none is good: the newest clean one at a
    /// safe distance from the onset, or `None`.
    pub last_good: Option<CheckpointId>,
    /// The evidence, as text.
    pub evidence: Vec<String>,
    /// The candidates for the cause, the best first.
    pub causes: Vec<Cause>,
    /// Number of candidates.
    pub candidates: usize,
    /// The probability that a random ranking has the right candidate first.
    pub chance_level: f64,
    /// The features that raised the alarm, strongest first.
    #[serde(skip_deserializing)]
    pub leads: Vec<&'static str>,
}

/// Bound on the checkpoints of the path.
const PATH_MAX: usize = 64;
/// Number of features that determine the onset.
const LEADS_MAX: usize = 5;
/// Lines of the kernel log shown as evidence.
const LOG_LINES_MAX: usize = 5;

/// Explains an alarm from the snapshot database alone, with the default configuration.
pub fn explain(catalogue: &Catalogue, first_alarm: CheckpointId) -> Result<Explanation> {
    explain_with(catalogue, first_alarm, Config::default())
}

/// Explains an alarm from the snapshot database alone.
pub fn explain_with(catalogue: &Catalogue, first_alarm: CheckpointId, config: Config) -> Result<Explanation> {
    let machine = catalogue.checkpoint(first_alarm)?.machine;
    let evaluator = history::replay(catalogue, machine, config, Some(first_alarm), |_| Ok(()))?;
    evaluator.explain(catalogue, first_alarm)
}

/// One checkpoint on the path to the alarm.
struct Stage {
    record: CheckpointRecord,
    sample: Sample,
    observation: Option<Observation>,
    assessment: Option<Assessment>,
}

impl Evaluator {
    /// Like [`explain`], with what this evaluator learnt of the alarm's segment: nothing is learnt again.
    pub fn explain(&self, catalogue: &Catalogue, first_alarm: CheckpointId) -> Result<Explanation> {
        let segment = self.segment_of(first_alarm);
        let path = self.path(catalogue, first_alarm)?;
        let Some(alarm) = path.last() else {
            return Err(AnalyticsError::NoFacts { checkpoint: first_alarm });
        };
        let leads = self.leads(alarm);
        let violations: Vec<(&Violation, usize)> =
            alarm.sample.violations.iter().map(|violation| (violation, since(&path, violation))).collect();
        let deviation_onset = deviation_onset(&path, &leads);
        let began =
            violations.iter().map(|(_, at)| *at).chain(deviation_onset).min().unwrap_or(path.len() - 1);
        let last_good = self.last_good(catalogue, &path, began)?;

        // Causes are sought in the changes since the checkpoint before the onset.
        let before = began.checked_sub(1).and_then(|at| path.get(at)).map(|stage| &stage.sample);
        let view = View::new(&alarm.sample, before);
        let observation = view.observation(segment.model().map(|model| &model.profiles));
        let assessment = segment.model().map(|model| model.assess(&observation));
        let clean: Vec<&Observation> = segment.baseline().collect();
        let named: Vec<_> = violations.iter().map(|(v, at)| (*v, path[*at].record.name.clone())).collect();
        let ranking = rank(&view, &observation, segment.model().zip(assessment.as_ref()), &clean, &named);
        Ok(Explanation {
            alarm: first_alarm,
            onset: path[began].record.id,
            last_good: last_good.as_ref().map(|record| record.id),
            evidence: self.evidence(&path, began, &leads, last_good.as_ref()),
            causes: ranking.causes,
            candidates: ranking.candidates,
            chance_level: chance_level(ranking.candidates),
            leads: leads.iter().map(|at| FEATURES[*at].name).collect(),
        })
    }

    /// The checkpoints that led to the alarm and have facts, oldest first.
    fn path(&self, catalogue: &Catalogue, alarm: CheckpointId) -> Result<Vec<Stage>> {
        let model = self.segment_of(alarm).model();
        let mut line = catalogue.ancestry_within(alarm, PATH_MAX)?;
        line.reverse();
        let mut path: Vec<Stage> = Vec::with_capacity(line.len());
        for record in line {
            let Some(sample) = Sample::load_record(catalogue, &record)? else {
                if record.id == alarm {
                    return Err(AnalyticsError::NoFacts { checkpoint: alarm });
                }
                continue;
            };
            let parent = path
                .last()
                .map(|stage| &stage.sample)
                .filter(|parent| Some(parent.checkpoint) == record.parent);
            let observation = View::new(&sample, parent).observation(model.map(|model| &model.profiles));
            let assessment = model.map(|model| model.assess(&observation));
            path.push(Stage { record, sample, observation: Some(observation), assessment });
        }
        Ok(path)
    }

    /// The features that deviate most from clean checkpoints.
    fn leads(&self, alarm: &Stage) -> Vec<usize> {
        let Some(assessment) = &alarm.assessment else { return Vec::new() };
        let mut leads: Vec<usize> = (0..FEATURES.len())
            .filter(|at| assessment.evidence[*at].abs() >= self.config().deviation_min)
            .collect();
        leads.sort_by(|a, b| assessment.evidence[*b].abs().total_cmp(&assessment.evidence[*a].abs()));
        leads.truncate(LEADS_MAX);
        leads
    }

    fn last_good(
        &self,
        catalogue: &Catalogue,
        path: &[Stage],
        began: usize,
    ) -> Result<Option<CheckpointRecord>> {
        let Some(onset) = path.get(began) else { return Ok(None) };
        let mut line = catalogue.ancestry(onset.record.id)?.into_iter().skip(1);
        let mut clear = Vec::new();
        for record in line.by_ref() {
            if record.verdict == Verdict::Good || self.is_good(record.id) {
                return Ok(Some(record));
            }
            clear.push(record);
        }
        // No checkpoint is good: takes the newest clean one at a safe distance from the onset.
        Ok(clear.into_iter().skip(self.config().settle_checkpoints).find(|record| {
            record.verdict == Verdict::Unknown && record.kind != CheckpointKind::BeforeRollback
        }))
    }

    fn evidence(
        &self,
        path: &[Stage],
        began: usize,
        leads: &[usize],
        last_good: Option<&CheckpointRecord>,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        let (Some(onset), Some(alarm)) = (path.get(began), path.last()) else { return lines };
        let later = path.len() - 1 - began;
        let model = self.segment_of(alarm.record.id).model();
        lines.push(match later {
            0 => format!("it shows first in checkpoint {}, which raised the alarm", onset.record.name),
            _ => format!(
                "it shows first in checkpoint {}, {later} before the alarm in {}",
                onset.record.name, alarm.record.name
            ),
        });
        lines.extend(alarm.sample.violations.iter().map(ToString::to_string));
        for at in leads {
            let value = |stage: &Stage| stage.observation.as_ref().and_then(|o| *o.vector.get(*at)?);
            let Some((low, high)) = model.and_then(|model| model.scale(*at)).map(Scale::range) else {
                continue;
            };
            let shown = |stage: &Stage| value(stage).map_or("unknown".to_owned(), short);
            let mut line = format!("{} was {} when clean", FEATURES[*at].name, range(low, high));
            for stage in if later == 0 { vec![alarm] } else { vec![onset, alarm] } {
                let _ = write!(line, ", {} in {}", shown(stage), stage.record.name);
            }
            lines.push(line);
        }
        let quiet = began.checked_sub(1).and_then(|at| path.get(at)).map(|stage| &stage.sample.log);
        if let Some(quiet) = quiet {
            let errors = alarm.sample.log.since(quiet).filter(|line| line.level <= Log::ERROR_LEVEL);
            lines.extend(errors.take(LOG_LINES_MAX).map(|line| format!("kernel log: {}", line.text)));
        }
        lines.push(match last_good {
            Some(record) => format!("checkpoint {} is the last good one before it", record.name),
            None => "no checkpoint before it is known to be good".to_owned(),
        });
        lines
    }
}

/// The position from which on an invariant was broken without interruption.
fn since(path: &[Stage], violation: &Violation) -> usize {
    let held = path.iter().rposition(|stage| {
        !stage
            .sample
            .violations
            .iter()
            .any(|other| other.kind == violation.kind && other.object == violation.object)
    });
    held.map_or(0, |at| (at + 1).min(path.len() - 1))
}

fn deviation_onset(path: &[Stage], leads: &[usize]) -> Option<usize> {
    if leads.is_empty() {
        return None;
    }
    let alarm = &path.last()?.assessment.as_ref()?.evidence;
    let values: Vec<f64> = path
        .iter()
        .map(|stage| stage.assessment.as_ref().map_or(0.0, |then| likeness(alarm, &then.evidence, leads)))
        .collect();
    onset(&values)
}

impl Explanation {
    /// The best candidate.
    #[must_use]
    pub fn top_cause(&self) -> Option<&Cause> {
        self.causes.first()
    }

    /// Whether the best candidate is a broken invariant, for which the chance level has no meaning.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.top_cause()
            .is_some_and(|cause| cause.score >= Evaluation::SCORE_MAX && cause.kind == CauseKind::Invariant)
    }
}
