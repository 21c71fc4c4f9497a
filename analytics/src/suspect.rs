//! Families of tasks that do what they never did when the guest was well.

use crate::activity::{Activity, Habits, Interval, TaskDeed};
use crate::number::short;
use crate::sample::count_f64;
use crate::scale::BURST_S;

/// One family under suspicion.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Suspect {
    pub(crate) family: String,
    /// How far beyond its habits, in the smallest steps that count as news.
    pub(crate) score: f64,
    /// Everything that speaks against it, strongest first.
    pub(crate) evidence: Vec<String>,
    /// Some of its tasks, the busiest first.
    pub(crate) pids: Vec<i64>,
}

/// Steps that count as news; those of the excess features.
const CPU_SHARE_STEP: f64 = 0.06;
const TASKS_STEP: f64 = 2.0;
const CHILDREN_PER_S_STEP: f64 = 2.0;
const PAGES_STEP: f64 = 1000.0;
/// Steps from which on a piece of evidence is worth a line.
const STEPS_MIN: f64 = 2.0;
/// Pids named of one family.
const PIDS_MAX: usize = 6;

/// Ranks the families by how far they went beyond their habits.
pub(crate) fn suspects(
    deeds: &[TaskDeed<'_>],
    activity: &Activity,
    habits: &Habits,
    interval: Option<Interval>,
) -> Vec<Suspect> {
    // A short interval sees all of a burst.
    let burst = interval.map_or(0.0, |interval| BURST_S / interval.seconds);
    let cpu_share_step = CPU_SHARE_STEP.hypot(burst);
    let mut found: Vec<Suspect> = activity
        .iter()
        .filter_map(|(family, deed)| {
            let (excess, habit) = (habits.excess(family, deed), habits.of(family));
            let mut pieces = vec![
                (
                    excess.cpu_share / cpu_share_step,
                    format!(
                        "used {} processors, at most {} when clean",
                        short(deed.cpu_share),
                        short(habit.most.cpu_share)
                    ),
                ),
                (
                    excess.tasks / TASKS_STEP,
                    format!(
                        "has {} tasks, at most {} when clean",
                        short(deed.tasks),
                        short(habit.most.tasks)
                    ),
                ),
                (
                    excess.children_per_s / CHILDREN_PER_S_STEP,
                    format!(
                        "started {} processes a second, at most {} when clean",
                        short(deed.children_per_s),
                        short(habit.most.children_per_s)
                    ),
                ),
                (
                    excess.rss_pages / PAGES_STEP,
                    format!(
                        "holds {} pages of memory, at most {} when clean",
                        short(deed.rss_pages),
                        short(habit.most.rss_pages)
                    ),
                ),
            ];
            pieces.retain(|(steps, _)| *steps >= STEPS_MIN);
            pieces.sort_by(|a, b| b.0.total_cmp(&a.0));
            let score = pieces.first()?.0;
            let mut evidence: Vec<String> = pieces.into_iter().map(|(_, text)| text).collect();
            if habit.seen == 0 {
                evidence.push(format!("not seen in any of {} clean checkpoints", habits.checkpoints()));
            }
            if deed.newcomers > 0.0 && interval.is_some() {
                evidence
                    .push(format!("{} of them started since the checkpoint before", short(deed.newcomers)));
            }
            Some(Suspect { family: family.clone(), score, evidence, pids: pids(deeds, family) })
        })
        .collect();
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.family.cmp(&b.family)));
    found
}

fn pids(deeds: &[TaskDeed<'_>], family: &str) -> Vec<i64> {
    let mut members: Vec<_> = deeds.iter().filter(|deed| deed.task.family() == family).collect();
    members.sort_by(|a, b| b.cpu_share.total_cmp(&a.cpu_share).then(a.task.pid.cmp(&b.task.pid)));
    members.iter().take(PIDS_MAX).map(|deed| deed.task.pid).collect()
}

impl Suspect {
    /// The family and some of its pids.
    pub(crate) fn title(&self) -> String {
        let pids: Vec<_> = self.pids.iter().map(ToString::to_string).collect();
        let word = if count_f64(pids.len()) > 1.0 { "pids" } else { "pid" };
        format!("task `{}` ({word} {})", self.family, pids.join(", "))
    }
}
