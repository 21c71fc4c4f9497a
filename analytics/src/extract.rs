use std::collections::BTreeMap;

use crate::activity::{Activity, Interval, Profiles, TaskUsage};
use crate::feature::{FEATURES, Vector};
use crate::sample::{Log, Sample, count_f64, u64_f64};

/// Computes the features of a checkpoint from its facts, its parent and the families' profiles.
///
/// `profiles` is `None` while they are being learnt: the features that need them are then zero.
pub(crate) fn extract(
    sample: &Sample,
    parent: Option<&Sample>,
    interval: Option<Interval>,
    usages: &[TaskUsage<'_>],
    activity: &Activity,
    profiles: Option<&Profiles>,
) -> Vector {
    let mut values = Values::default();
    tasks(&mut values, sample, parent, interval, usages, activity);
    against_profiles(&mut values, activity, profiles);
    processor(&mut values, sample, parent, interval, usages);
    memory(&mut values, sample, parent, interval);
    capture(&mut values, sample, interval);
    kernel(&mut values, sample, parent, interval);
    FEATURES.iter().map(|feature| values.get(feature.name)).collect()
}

#[derive(Default)]
struct Values(Vec<(&'static str, f64)>);

impl Values {
    fn set(&mut self, name: &'static str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into().filter(|value: &f64| value.is_finite()) {
            self.0.push((name, value));
        }
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(have, _)| *have == name).map(|(_, value)| *value)
    }
}

/// A feature that is computed from the kernel's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterSource {
    /// The feature.
    pub feature: &'static str,
    /// The counters that are added up. A kernel may lack some of them.
    pub counters: &'static [&'static str],
}

const fn source(feature: &'static str, counters: &'static [&'static str]) -> CounterSource {
    CounterSource { feature, counters }
}

/// Every feature that is computed from counters, with its counters. The names are those of `fact_counter`.
pub const COUNTERS: &[CounterSource] = &[
    source("forks_per_s", &["total_forks"]),
    source("cpu_user_share", &["cpu_user_ns", "cpu_nice_ns"]),
    source("cpu_system_share", &["cpu_system_ns", "cpu_irq_ns", "cpu_softirq_ns"]),
    source("cpu_idle_share", &["cpu_idle_ns", "cpu_iowait_ns"]),
    source("load1", &["load1"]),
    source("context_switches_per_s", &["context_switches"]),
    source("interrupts_per_s", &["interrupts"]),
    source("page_faults_per_s", &["pgfault"]),
    source("major_faults_per_s", &["pgmajfault"]),
    source(
        "allocations_per_s",
        &["pgalloc_dma", "pgalloc_dma32", "pgalloc_normal", "pgalloc_movable", "pgalloc_device"],
    ),
    source("frees_per_s", &["pgfree"]),
    source("reclaimed_per_s", &["pgsteal_kswapd", "pgsteal_direct", "pgsteal_khugepaged"]),
    source("swapped_per_s", &["pswpout"]),
    source("out_of_memory_kills", &["oom_kill"]),
    source("free_pages", &["nr_free_pages"]),
    source("free_pages_change_per_s", &["nr_free_pages"]),
    source("anon_pages", &["nr_anon_pages"]),
    source("anon_pages_change_per_s", &["nr_anon_pages"]),
    source("file_pages", &["nr_file_pages"]),
    source("slab_pages", &["nr_slab_reclaimable", "nr_slab_unreclaimable"]),
    source("page_table_pages", &["nr_page_table_pages"]),
];

/// The sum of a feature's counters; `None` where the guest has none of them.
fn total(sample: &Sample, feature: &str) -> Option<f64> {
    let source = COUNTERS.iter().find(|source| source.feature == feature)?;
    source.counters.iter().filter_map(|name| sample.counter(name)).reduce(|a, b| a + b)
}

/// The growth of a feature's counters; `None` when a value is missing or they decreased.
fn growth(sample: &Sample, parent: Option<&Sample>, feature: &str) -> Option<f64> {
    let grown = total(sample, feature)? - total(parent?, feature)?;
    (grown >= 0.0).then_some(grown)
}

fn per_second(amount: Option<f64>, interval: Option<Interval>) -> Option<f64> {
    Some(amount? / interval?.seconds)
}

fn tasks(
    values: &mut Values,
    sample: &Sample,
    parent: Option<&Sample>,
    interval: Option<Interval>,
    usages: &[TaskUsage<'_>],
    activity: &Activity,
) {
    let in_state = |state| count_f64(sample.tasks.iter().filter(|task| task.state == state).count());
    // The kernel starts and ends its workers as it needs them.
    let workers: f64 = activity.get("[kworker]").map_or(0.0, |usage| usage.tasks);
    values.set("tasks", count_f64(sample.tasks.len()) - workers);
    values.set("user_tasks", count_f64(sample.tasks.iter().filter(|task| !task.kernel_thread).count()));
    values.set("runnable", in_state('R'));
    values.set("blocked", in_state('D'));
    values.set("zombies", in_state('Z'));
    let families = activity.values().filter(|usage| !usage.kernel);
    values.set("largest_family", families.map(|usage| usage.tasks).fold(0.0, f64::max));
    let new = count_f64(usages.iter().filter(|usage| usage.new).count());
    values.set("new_tasks_per_s", per_second(parent.map(|_| new), interval));
    let kept = count_f64(sample.tasks.len()) - new;
    values.set("exits_per_s", per_second(parent.map(|p| count_f64(p.tasks.len()) - kept), interval));
    values.set("forks_per_s", per_second(growth(sample, parent, "forks_per_s"), interval));
}

fn against_profiles(values: &mut Values, activity: &Activity, profiles: Option<&Profiles>) {
    let excess = profiles.map(|profiles| profiles.total_excess(activity)).unwrap_or_default();
    values.set("excess_tasks", excess.tasks);
    values.set("excess_cpu_share", excess.cpu_share);
    values.set("excess_rss_pages", excess.rss_pages);
    values.set("stranger_families", profiles.map_or(0.0, |profiles| profiles.unknown_families(activity)));
    values.set(
        "missing_families",
        profiles.map_or(0.0, |profiles| count_f64(profiles.missing(activity).count())),
    );
}

fn processor(
    values: &mut Values,
    sample: &Sample,
    parent: Option<&Sample>,
    interval: Option<Interval>,
    usages: &[TaskUsage<'_>],
) {
    for feature in ["cpu_user_share", "cpu_system_share", "cpu_idle_share"] {
        let used_s = per_second(growth(sample, parent, feature), interval).map(|ns| ns / 1e9);
        values.set(feature, used_s.map(|used_s| (used_s / sample.cpus).min(1.0)));
    }
    let top = usages.iter().map(|usage| usage.cpu_share).fold(0.0, f64::max);
    values.set("top_task_cpu_share", parent.and(interval).map(|_| top));
    // The counter is in hundredths.
    values.set("load1", total(sample, "load1").map(|load| load / 100.0));
    for feature in ["context_switches_per_s", "interrupts_per_s"] {
        values.set(feature, per_second(growth(sample, parent, feature), interval));
    }
}

fn memory(values: &mut Values, sample: &Sample, parent: Option<&Sample>, interval: Option<Interval>) {
    for feature in [
        "page_faults_per_s",
        "major_faults_per_s",
        "allocations_per_s",
        "frees_per_s",
        "reclaimed_per_s",
        "swapped_per_s",
    ] {
        values.set(feature, per_second(growth(sample, parent, feature), interval));
    }
    values.set("out_of_memory_kills", growth(sample, parent, "out_of_memory_kills"));
    for feature in ["free_pages", "anon_pages", "file_pages", "slab_pages", "page_table_pages"] {
        values.set(feature, total(sample, feature).map(|pages| pages.max(0.0)));
    }
    for feature in ["free_pages_change_per_s", "anon_pages_change_per_s"] {
        let change = total(sample, feature).zip(parent.and_then(|parent| total(parent, feature)));
        values.set(feature, per_second(change.map(|(now, before)| now - before), interval));
    }
    let largest = sample.tasks.iter().map(|task| task.rss_pages).max();
    values.set("largest_rss_pages", largest.map(u64_f64));
}

/// Shortest interval, in guest seconds, for a ratio of pages.
const RATIO_SECONDS_MIN: f64 = 0.2;
const RATIO_PAGES_MIN: f64 = 64.0;

fn capture(values: &mut Values, sample: &Sample, interval: Option<Interval>) {
    let capture = sample.capture;
    values.set("dirty_pages_per_s", per_second(Some(capture.dirty_pages), interval));
    values.set("stored_bytes_per_s", per_second(Some(capture.stored_bytes), interval));
    // A ratio of few pages is noise.
    if interval.is_some_and(|interval| interval.seconds >= RATIO_SECONDS_MIN)
        && capture.dirty_pages >= RATIO_PAGES_MIN
    {
        values.set("new_content_ratio", (capture.new_pages / capture.dirty_pages).min(1.0));
        values.set("zero_ratio", (capture.zero_pages / capture.dirty_pages).min(1.0));
    }
}

fn kernel(values: &mut Values, sample: &Sample, parent: Option<&Sample>, interval: Option<Interval>) {
    values.set("modules", count_f64(sample.modules.len()));
    values.set("violations", count_f64(sample.violations.len()));
    let Some(parent) = parent else { return };
    values.set("module_changes", count_f64(sample.modules.symmetric_difference(&parent.modules).count()));
    values.set("syscall_changes", count_f64(syscall_changes(sample, parent)));
    let errors = sample.log.since(&parent.log).filter(|line| line.level <= Log::ERROR_LEVEL).count();
    values.set("log_lines_per_s", per_second(Some(u64_f64(sample.log.lines_since(&parent.log))), interval));
    values.set("log_errors_per_s", per_second(Some(count_f64(errors)), interval));
}

/// Number of rows from which a checkpoint has the complete table of system calls. Only the first one of a boot has it;
/// later ones have the calls whose target differs from the first.
const SYSCALLS_WHOLE_MIN: usize = 100;

/// Number of system calls whose target differs from that in the parent.
fn syscall_changes(sample: &Sample, parent: &Sample) -> usize {
    let (now, before) = (&sample.syscalls, &parent.syscalls);
    let whole = |calls: &BTreeMap<_, _>| calls.len() >= SYSCALLS_WHOLE_MIN;
    let moved = now.iter().filter(|(call, target)| before.get(*call) != Some(target));
    match (whole(now), whole(before)) {
        // Two boots, or a boot whose first checkpoint was read again: calls on one side only are ignored.
        (true, _) => moved.filter(|(call, _)| before.contains_key(*call)).count(),
        (false, true) => moved.count(),
        // A call that is no longer listed has its first target again.
        (false, false) => moved.count() + before.keys().filter(|call| !now.contains_key(*call)).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_source_is_of_a_feature() {
        for source in COUNTERS {
            assert!(crate::feature::position(source.feature).is_some(), "{}", source.feature);
            assert!(!source.counters.is_empty(), "{}", source.feature);
        }
    }
}
