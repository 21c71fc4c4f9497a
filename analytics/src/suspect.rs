//! Families of tasks that exceed their profile of clean checkpoints.

use crate::activity::{Activity, Interval, Profiles, TaskUsage};
use crate::number::short;
use crate::sample::count_f64;
use crate::scale::BURST_S;

/// One such family.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Suspect {
    pub(crate) family: String,
    /// The excess over its profile, in the smallest steps that count.
    pub(crate) score: f64,
    /// The evidence, strongest first.
    pub(crate) evidence: Vec<String>,
    /// Some of its tasks, the busiest first.
    pub(crate) pids: Vec<i64>,
}

/// The smallest steps that count, equal to those of the excess features.
const CPU_SHARE_STEP: f64 = 0.06;
const TASKS_STEP: f64 = 2.0;
const CHILDREN_PER_S_STEP: f64 = 2.0;
const PAGES_STEP: f64 = 1000.0;
/// Smallest number of steps for a line of evidence.
const STEPS_MIN: f64 = 2.0;
/// Number of pids listed for one family.
const PIDS_MAX: usize = 6;

/// Ranks the families by their excess over the profile.
pub(crate) fn suspects(
    usages: &[TaskUsage<'_>],
    activity: &Activity,
    profiles: &Profiles,
    interval: Option<Interval>,
) -> Vec<Suspect> {
    // A short interval can contain a whole burst.
    let burst = interval.map_or(0.0, |interval| BURST_S / interval.seconds);
    let cpu_share_step = CPU_SHARE_STEP.hypot(burst);
    let mut found: Vec<Suspect> = activity
        .iter()
        .filter_map(|(family, usage)| {
            let (excess, profile) = (profiles.excess(family, usage), profiles.of(family));
            let mut pieces = vec![
                (
                    excess.cpu_share / cpu_share_step,
                    format!(
                        "used {} processors, at most {} when clean",
                        short(usage.cpu_share),
                        short(profile.most.cpu_share)
                    ),
                ),
                (
                    excess.tasks / TASKS_STEP,
                    format!(
                        "has {} tasks, at most {} when clean",
                        short(usage.tasks),
                        short(profile.most.tasks)
                    ),
                ),
                (
                    excess.children_per_s / CHILDREN_PER_S_STEP,
                    format!(
                        "started {} processes a second, at most {} when clean",
                        short(usage.children_per_s),
                        short(profile.most.children_per_s)
                    ),
                ),
                (
                    excess.rss_pages / PAGES_STEP,
                    format!(
                        "holds {} pages of memory, at most {} when clean",
                        short(usage.rss_pages),
                        short(profile.most.rss_pages)
                    ),
                ),
            ];
            pieces.retain(|(steps, _)| *steps >= STEPS_MIN);
            pieces.sort_by(|a, b| b.0.total_cmp(&a.0));
            let score = pieces.first()?.0;
            let mut evidence: Vec<String> = pieces.into_iter().map(|(_, text)| text).collect();
            if profile.seen == 0 {
                evidence.push(format!("not seen in any of {} clean checkpoints", profiles.checkpoints()));
            }
            if usage.new_tasks > 0.0 && interval.is_some() {
                evidence
                    .push(format!("{} of them started since the checkpoint before", short(usage.new_tasks)));
            }
            Some(Suspect { family: family.clone(), score, evidence, pids: pids(usages, family) })
        })
        .collect();
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.family.cmp(&b.family)));
    found
}

fn pids(usages: &[TaskUsage<'_>], family: &str) -> Vec<i64> {
    let mut members: Vec<_> = usages.iter().filter(|usage| usage.task.family() == family).collect();
    members.sort_by(|a, b| b.cpu_share.total_cmp(&a.cpu_share).then(a.task.pid.cmp(&b.task.pid)));
    members.iter().take(PIDS_MAX).map(|usage| usage.task.pid).collect()
}

impl Suspect {
    /// The family and some of its pids.
    pub(crate) fn title(&self) -> String {
        let pids: Vec<_> = self.pids.iter().map(ToString::to_string).collect();
        let word = if count_f64(pids.len()) > 1.0 { "pids" } else { "pid" };
        format!("task `{}` ({word} {})", self.family, pids.join(", "))
    }
}
