//! Ranks candidates for the cause of an alarm.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::activity::Activity;
use crate::counter::{Outlier, outliers};
use crate::evaluation::Evaluation;
use crate::feature::FEATURES;
use crate::model::{Assessment, Model, Observation};
use crate::number::{range, short};
use crate::sample::{Violation, count_f64};
use crate::suspect::suspects;
use crate::view::View;

/// The kind of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// A broken invariant. It is certain, so these come first.
    Invariant,
    /// A family of tasks beyond its profile, or gone.
    Task,
    /// A counter or feature out of its range: a symptom, listed after the other kinds.
    Counter,
}

impl fmt::Display for CauseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Invariant => "invariant",
            Self::Task => "task",
            Self::Counter => "counter",
        })
    }
}

/// One candidate for the cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// Its rank, from 1.
    pub rank: usize,
    /// Its kind.
    pub kind: CauseKind,
    /// The name of the call, task or counter. The guest chose it: untrusted text.
    pub object: String,
    /// The deviation: robust standard deviations, or multiples of the smallest step that counts. Comparable within a
    /// kind.
    pub score: f64,
    /// One line for display.
    pub text: String,
    /// The evidence for it.
    pub evidence: Vec<String>,
}

/// The causes, and the number of candidates from which they were chosen.
pub(crate) struct Ranking {
    pub(crate) causes: Vec<Cause>,
    pub(crate) candidates: usize,
}

/// Bound on the listed candidates of one kind.
const LISTED_MAX: usize = 8;
/// Smallest deviation of a listed counter, in robust standard deviations.
const DEVIATION_MIN: f64 = 4.0;
/// The score of a missing task that was in every clean checkpoint.
const MISSING_SCORE: f64 = 20.0;

/// Ranks the candidates for the state at the end of `view`.
pub(crate) fn rank(
    view: &View<'_>,
    observation: &Observation,
    known: Option<(&Model, &Assessment)>,
    clean: &[&Observation],
    violations: &[(&Violation, String)],
) -> Ranking {
    let mut causes: Vec<Cause> =
        violations.iter().map(|(violation, since)| invariant(violation, since)).collect();
    let mut candidates = violations.len() + view.activity.len();
    if let Some((model, assessment)) = known {
        causes.extend(tasks(view, model));
        let outliers = outliers(&observation.counters, clean.iter().map(|o| &o.counters));
        candidates += outliers.len() + FEATURES.len();
        causes.extend(counters(outliers, observation, model, assessment));
    }
    for (at, cause) in causes.iter_mut().enumerate() {
        cause.rank = at + 1;
    }
    Ranking { causes, candidates: candidates.max(1) }
}

fn invariant(violation: &Violation, since: &str) -> Cause {
    let mut evidence = vec![format!("first seen in checkpoint {since}")];
    evidence.extend(violation.symbol.as_ref().map(|symbol| format!("concerns the kernel symbol {symbol}")));
    Cause {
        rank: 0,
        kind: CauseKind::Invariant,
        object: violation.object.clone(),
        score: Evaluation::SCORE_MAX,
        text: violation.to_string(),
        evidence,
    }
}

fn tasks(view: &View<'_>, model: &Model) -> Vec<Cause> {
    let beyond =
        suspects(&view.usages, &view.activity, &model.profiles, view.interval).into_iter().map(|suspect| {
            let first = suspect.evidence.first().cloned().unwrap_or_default();
            let mut evidence = suspect.evidence.clone();
            evidence.extend(origin(view, &suspect.family));
            Cause {
                rank: 0,
                kind: CauseKind::Task,
                text: format!("{} {first}", suspect.title()),
                object: suspect.family,
                score: suspect.score,
                evidence,
            }
        });
    let mut causes: Vec<Cause> = beyond.chain(gone(&view.activity, model)).collect();
    causes.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.object.cmp(&b.object)));
    causes.truncate(LISTED_MAX);
    causes
}

fn gone<'a>(activity: &'a Activity, model: &'a Model) -> impl Iterator<Item = Cause> + 'a {
    // Kernel threads are created and end as their work requires.
    model.profiles.missing(activity).filter(|name| !name.starts_with('[')).map(|name| Cause {
        rank: 0,
        kind: CauseKind::Task,
        object: name.to_owned(),
        score: MISSING_SCORE,
        text: format!("task `{name}` is gone"),
        evidence: vec![format!("alive in every one of {} clean checkpoints", model.profiles.checkpoints())],
    })
}

/// The parents of the family's tasks, the most frequent first.
fn origin(view: &View<'_>, family: &str) -> Option<String> {
    let mut parents: Vec<(&str, usize)> = Vec::new();
    for usage in view.usages.iter().filter(|usage| usage.task.family() == family) {
        let parent =
            usage.task.parent_comm.as_deref().filter(|parent| !parent.is_empty() && *parent != family);
        let Some(parent) = parent else { continue };
        match parents.iter_mut().find(|(name, _)| *name == parent) {
            Some((_, count)) => *count += 1,
            None => parents.push((parent, 1)),
        }
    }
    parents.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    parents.first().map(|(parent, _)| format!("started by `{parent}`"))
}

fn counters(
    outliers: Vec<Outlier>,
    observation: &Observation,
    model: &Model,
    assessment: &Assessment,
) -> Vec<Cause> {
    let raw =
        outliers.into_iter().filter(|outlier| outlier.deviation.abs() >= DEVIATION_MIN).map(|outlier| {
            let unit = if outlier.level { "" } else { " a second" };
            Cause {
                rank: 0,
                kind: CauseKind::Counter,
                score: outlier.deviation.abs(),
                text: format!(
                    "{} is {}{unit}: {} when clean",
                    outlier.name,
                    short(outlier.now),
                    range(outlier.low, outlier.high)
                ),
                object: outlier.name,
                evidence: vec![format!("{} robust deviations", short(outlier.deviation))],
            }
        });
    let features = FEATURES.iter().enumerate().filter_map(|(at, feature)| {
        let deviation = *assessment.evidence.get(at)?;
        let (low, high) = model.scale(at)?.range();
        let now = (*observation.vector.get(at)?)?;
        (deviation.abs() >= DEVIATION_MIN).then(|| Cause {
            rank: 0,
            kind: CauseKind::Counter,
            object: feature.name.to_owned(),
            score: deviation.abs(),
            text: format!("{} is {}: {} when clean", feature.name, short(now), range(low, high)),
            evidence: vec![feature.meaning.to_owned(), format!("{} robust deviations", short(deviation))],
        })
    });
    let mut causes: Vec<Cause> = raw.chain(features).collect();
    causes.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.object.cmp(&b.object)));
    causes.truncate(LISTED_MAX);
    causes
}

/// The probability that a random ranking has the right candidate first.
pub(crate) fn chance_level(candidates: usize) -> f64 {
    1.0 / count_f64(candidates.max(1))
}
