//! The usage of each family of tasks (those of one name) between two checkpoints.

use std::collections::{BTreeMap, HashMap};

use crate::sample::{Sample, Task, count_f64, family, u64_f64};

/// The usage of one family of tasks in an interval, and its size at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct FamilyUsage {
    /// Tasks at the end.
    pub(crate) tasks: f64,
    /// Tasks among them that the earlier checkpoint did not have.
    pub(crate) new_tasks: f64,
    /// Processor time per guest second: 1 is one processor fully used.
    pub(crate) cpu_share: f64,
    /// Resident memory at the end, in pages.
    pub(crate) rss_pages: f64,
    /// Tasks of any name that started in the interval and have a parent of this name, per guest second.
    pub(crate) children_per_s: f64,
    /// Whether these are threads of the kernel.
    pub(crate) kernel: bool,
}

/// The usage of all families in one interval.
pub(crate) type Activity = BTreeMap<String, FamilyUsage>;

/// The guest time between two checkpoints on a timeline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) seconds: f64,
}

impl Interval {
    /// Shorter guest times give rates that are mostly rounding errors.
    const SECONDS_MIN: f64 = 0.05;

    /// `None` where rates are not defined: no parent, no clock, or a clock that went back or hardly advanced.
    pub(crate) fn between(parent: &Sample, sample: &Sample) -> Option<Self> {
        let seconds = u64_f64(sample.uptime_ns?.checked_sub(parent.uptime_ns?)?) / 1e9;
        (seconds >= Self::SECONDS_MIN).then_some(Self { seconds })
    }
}

/// The usage of one task in an interval.
pub(crate) struct TaskUsage<'a> {
    pub(crate) task: &'a Task,
    pub(crate) new: bool,
    /// Processor time per guest second: 1 is one processor fully used.
    pub(crate) cpu_share: f64,
}

/// The usage since `parent` of each task alive at the end.
pub(crate) fn task_usages<'a>(
    sample: &'a Sample,
    parent: Option<&Sample>,
    interval: Option<Interval>,
) -> Vec<TaskUsage<'a>> {
    let before: HashMap<(i64, u64), u64> =
        parent.map(|p| p.tasks.iter().map(|t| (t.identity(), t.cpu_ns)).collect()).unwrap_or_default();
    sample
        .tasks
        .iter()
        .map(|task| {
            let then = before.get(&task.identity());
            let used_ns = u64_f64(task.cpu_ns.saturating_sub(then.copied().unwrap_or(0)));
            // A thread cannot use more than one processor: a larger number is forged or torn.
            let cpu_share = interval.map_or(0.0, |i| (used_ns / 1e9 / i.seconds).min(1.0));
            TaskUsage { task, new: parent.is_some() && then.is_none(), cpu_share }
        })
        .collect()
}

/// Sums the tasks' usages by family.
pub(crate) fn activity(usages: &[TaskUsage<'_>], interval: Option<Interval>) -> Activity {
    let mut families = Activity::new();
    for usage in usages {
        let entry = families.entry(usage.task.family()).or_default();
        entry.kernel = usage.task.kernel_thread;
        entry.tasks += 1.0;
        entry.new_tasks += f64::from(u8::from(usage.new));
        entry.cpu_share += usage.cpu_share;
        if usage.task.leads() {
            entry.rss_pages += u64_f64(usage.task.rss_pages);
        }
    }
    let Some(interval) = interval else { return families };
    for usage in usages.iter().filter(|usage| usage.new && usage.task.leads()) {
        if let Some(parent) = &usage.task.parent_comm {
            // Only families alive at the end count as parents.
            let parent = family(parent, usage.task.kernel_thread);
            if let Some(entry) = families.get_mut(&parent) {
                entry.children_per_s += 1.0 / interval.seconds;
            }
        }
    }
    families
}

/// The profile of a family: its maximum usage in clean checkpoints, and how often it was alive.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Profile {
    /// Clean checkpoints in which it was alive.
    pub(crate) seen: usize,
    /// Whether all its tasks were replaced by new ones at least once: short-lived commands, which can also be absent at
    /// a checkpoint.
    pub(crate) replaced: bool,
    /// The maximum of each value.
    pub(crate) most: FamilyUsage,
}

/// The profiles of all families in clean checkpoints.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profiles {
    families: BTreeMap<String, Profile>,
    checkpoints: usize,
}

/// By how much a family exceeds its profile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Excess {
    pub(crate) tasks: f64,
    pub(crate) cpu_share: f64,
    pub(crate) rss_pages: f64,
    pub(crate) children_per_s: f64,
}

impl Profiles {
    pub(crate) fn learn<'a>(activities: impl Iterator<Item = &'a Activity>) -> Self {
        let mut profiles = Self::default();
        for activity in activities {
            profiles.checkpoints += 1;
            for (name, usage) in activity {
                let profile = profiles.families.entry(name.clone()).or_default();
                profile.seen += 1;
                profile.replaced |= usage.new_tasks >= usage.tasks;
                let most = &mut profile.most;
                most.tasks = most.tasks.max(usage.tasks);
                most.new_tasks = most.new_tasks.max(usage.new_tasks);
                most.cpu_share = most.cpu_share.max(usage.cpu_share);
                most.rss_pages = most.rss_pages.max(usage.rss_pages);
                most.children_per_s = most.children_per_s.max(usage.children_per_s);
            }
        }
        profiles
    }

    /// Clean checkpoints from which these profiles were learnt.
    pub(crate) fn checkpoints(&self) -> usize {
        self.checkpoints
    }

    pub(crate) fn of(&self, name: &str) -> Profile {
        self.families.get(name).copied().unwrap_or_default()
    }

    /// Families that were alive in every clean checkpoint, with the same tasks, and are not in `activity`.
    pub(crate) fn missing<'a>(&'a self, activity: &'a Activity) -> impl Iterator<Item = &'a str> {
        self.families
            .iter()
            .filter(move |(name, profile)| {
                profile.seen == self.checkpoints && !profile.replaced && !activity.contains_key(*name)
            })
            .map(|(name, _)| name.as_str())
    }

    pub(crate) fn excess(&self, name: &str, usage: &FamilyUsage) -> Excess {
        let most = self.of(name).most;
        Excess {
            tasks: (usage.tasks - most.tasks).max(0.0),
            cpu_share: (usage.cpu_share - 1.1 * most.cpu_share).max(0.0),
            rss_pages: (usage.rss_pages - 1.1 * most.rss_pages).max(0.0),
            children_per_s: (usage.children_per_s - most.children_per_s).max(0.0),
        }
    }

    /// The excess of all families of user tasks together.
    pub(crate) fn total_excess(&self, activity: &Activity) -> Excess {
        let mut total = Excess::default();
        for (name, usage) in activity.iter().filter(|(_, usage)| !usage.kernel) {
            let excess = self.excess(name, usage);
            total.tasks += excess.tasks;
            total.cpu_share += excess.cpu_share;
            total.rss_pages += excess.rss_pages;
            total.children_per_s += excess.children_per_s;
        }
        total
    }

    /// User families never seen in a clean checkpoint.
    pub(crate) fn unknown_families(&self, activity: &Activity) -> f64 {
        count_f64(
            activity
                .iter()
                .filter(|(name, usage)| !usage.kernel && !self.families.contains_key(*name))
                .count(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_starts_again_each_time_is_not_missing() {
        let at = |new_sleeps| {
            let one = FamilyUsage { tasks: 1.0, ..FamilyUsage::default() };
            let sleep = FamilyUsage { new_tasks: new_sleeps, ..one };
            Activity::from([("daemon".to_owned(), one), ("sleep".to_owned(), sleep)])
        };
        let clean = [at(0.0), at(1.0), at(0.0)];
        let profiles = Profiles::learn(clean.iter());
        assert_eq!(profiles.missing(&Activity::new()).collect::<Vec<_>>(), ["daemon"]);
        assert_eq!(profiles.missing(&clean[0]).count(), 0);
    }
}
