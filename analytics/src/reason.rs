//! The reasons for a verdict, as text.

use crate::evaluation::{Evaluation, Reason};
use crate::feature::FEATURES;
use crate::model::{Assessment, Model, Observation};
use crate::number::{probability, range, short};
use crate::sample::Sample;
use crate::settling::Settled;
use crate::suspect::suspects;
use crate::view::View;

fn note(subject: &str, text: String) -> Reason {
    Reason { text, subject: subject.to_owned(), invariant: false, weight: 0.0 }
}

/// The findings of rules, without statistics: broken invariants, an accepted change, a reboot, a stopped clock, missing
/// facts.
pub(crate) fn rules(
    sample: &Sample,
    rebooted: bool,
    stopped_s: Option<f64>,
    accepted: Option<&str>,
) -> Vec<Reason> {
    let broken = sample.violations.iter().map(|violation| Reason {
        text: violation.to_string(),
        subject: format!("{} {}", violation.kind, violation.object),
        invariant: true,
        weight: Evaluation::SCORE_MAX,
    });
    let accepted = accepted.map(|text| note("lasting change", text.to_owned()));
    let reboot = rebooted.then(|| {
        note("reboot", "the guest rebooted since the checkpoint before: a new baseline is learnt".to_owned())
    });
    let stopped = stopped_s
        .map(|seconds| note("clock", format!("the guest's clock did not advance for {} s", short(seconds))));
    let unreadable = (!sample.is_readable()).then(|| {
        let why = sample.passing_state().map_or_else(
            || "the guest's clock or tasks could not be read".to_owned(),
            |state| format!("the guest's kernel is not running but in state `{state}`"),
        );
        note("facts", format!("{why}: it is not known to be well"))
    });
    broken.chain(accepted).chain(reboot).chain(stopped).chain(unreadable).collect()
}

/// Why the guest has not settled yet, or what still changed when the longest wait ended.
pub(crate) fn settling(unsettled: Option<&str>, settled: Option<&Settled>) -> Option<Reason> {
    let text = match (unsettled, settled) {
        (Some(why), _) => format!("settling: {why}"),
        (None, Some(settled)) => {
            let changing = settled.still_changing.as_ref()?;
            format!(
                "settling: the longest wait is over ({changing}); the newest {} checkpoints are learnt",
                settled.baseline.len()
            )
        }
        (None, None) => return None,
    };
    Some(note("settling", text))
}

/// The tasks beyond their profile, the features outside their range, and the detector with the smallest p-value.
pub(crate) fn statistical(
    view: &View<'_>,
    model: &Model,
    observation: &Observation,
    assessment: &Assessment,
    alarmed: &[usize],
) -> Vec<Reason> {
    let tasks = suspects(&view.usages, &view.activity, &model.profiles, view.interval)
        .into_iter()
        .take(3)
        .map(|suspect| Reason {
            text: format!("{} {}", suspect.title(), suspect.evidence.join("; ")),
            subject: format!("task {}", suspect.family),
            invariant: false,
            weight: suspect.score,
        });
    let features = alarmed.iter().filter_map(|at| {
        let (feature, scale) = (FEATURES.get(*at)?, model.scale(*at)?);
        let (low, high) = scale.range();
        let deviation = assessment.deviations[*at];
        Some(Reason {
            text: format!(
                "{} {}: {} when clean ({} robust deviations)",
                feature.name,
                short((*observation.vector.get(*at)?)?),
                range(low, high),
                short(deviation)
            ),
            subject: feature.name.to_owned(),
            invariant: false,
            weight: deviation.abs(),
        })
    });
    let mut reasons: Vec<Reason> = tasks.chain(features).collect();
    if let Some((name, _, p)) = assessment.detectors.iter().min_by(|a, b| a.2.total_cmp(&b.2)) {
        reasons.push(Reason {
            text: format!(
                "detector `{name}`: p {} against {} clean checkpoints",
                probability(*p),
                model.checkpoints
            ),
            subject: format!("detector {name}"),
            invariant: false,
            weight: 0.0,
        });
    }
    reasons
}
