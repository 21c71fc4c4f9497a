use crate::activity::{Activity, Interval, Profiles, TaskUsage};
use crate::feature::{FEATURES, Vector};
use crate::sample::{Log, Sample, count_f64, u64_f64};

/// The features of a checkpoint, its parent and the families' profiles.
///
/// `profiles` is `None` while they are still being learnt: what is measured against them is then zero.
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

/// By how much a counter grew; `None` when either end is missing or it went back.
fn growth(sample: &Sample, parent: Option<&Sample>, names: &[&str]) -> Option<f64> {
    let sum = |of: &Sample| names.iter().filter_map(|name| of.counter(name)).reduce(|a, b| a + b);
    let grown = sum(sample)? - sum(parent?)?;
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
    values.set("tasks", count_f64(sample.tasks.len()));
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
    values.set("forks_per_s", per_second(growth(sample, parent, &["forks"]), interval));
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
    let share = |names: &[&str]| {
        let used_s = per_second(growth(sample, parent, names), interval)? / 1e9;
        Some((used_s / sample.cpus).min(1.0))
    };
    values.set("cpu_user_share", share(&["cpu_user_ns", "cpu_nice_ns"]));
    values.set("cpu_system_share", share(&["cpu_system_ns", "cpu_irq_ns", "cpu_softirq_ns"]));
    values.set("cpu_idle_share", share(&["cpu_idle_ns", "cpu_iowait_ns"]));
    let top = usages.iter().map(|usage| usage.cpu_share).fold(0.0, f64::max);
    values.set("top_task_cpu_share", parent.and(interval).map(|_| top));
    values.set("load1", sample.counter("load1_x100").map(|load| load / 100.0));
    values.set("context_switches_per_s", per_second(growth(sample, parent, &["context_switches"]), interval));
    values.set("interrupts_per_s", per_second(growth(sample, parent, &["interrupts"]), interval));
}

fn memory(values: &mut Values, sample: &Sample, parent: Option<&Sample>, interval: Option<Interval>) {
    let rate = |names: &[&str]| per_second(growth(sample, parent, names), interval);
    let level = |names: &[&str]| {
        names.iter().filter_map(|name| sample.counter(name)).reduce(|a, b| a + b).map(|pages| pages.max(0.0))
    };
    let change = |name: &str| per_second(Some(sample.counter(name)? - parent?.counter(name)?), interval);
    values.set("page_faults_per_s", rate(&["pgfault"]));
    values.set("major_faults_per_s", rate(&["pgmajfault"]));
    values.set(
        "allocations_per_s",
        rate(&["pgalloc_dma", "pgalloc_dma32", "pgalloc_normal", "pgalloc_movable", "pgalloc_device"]),
    );
    values.set("frees_per_s", rate(&["pgfree"]));
    values.set("reclaimed_per_s", rate(&["pgsteal_kswapd", "pgsteal_direct", "pgsteal_khugepaged"]));
    values.set("swapped_per_s", rate(&["pswpout"]));
    values.set("out_of_memory_kills", growth(sample, parent, &["oom_kill"]));
    values.set("free_pages", level(&["nr_free_pages"]));
    values.set("free_pages_change_per_s", change("nr_free_pages"));
    values.set("anon_pages", level(&["nr_anon_pages"]));
    values.set("anon_pages_change_per_s", change("nr_anon_pages"));
    values.set("file_pages", level(&["nr_file_pages"]));
    values.set("slab_pages", level(&["nr_slab_reclaimable", "nr_slab_unreclaimable"]));
    values.set("page_table_pages", level(&["nr_page_table_pages"]));
    let largest = sample.tasks.iter().map(|task| task.rss_pages).max();
    values.set("largest_rss_pages", largest.map(u64_f64));
}

/// Least that a ratio of pages is taken of.
const RATIO_SECONDS_MIN: f64 = 0.2;
const RATIO_PAGES_MIN: f64 = 64.0;

fn capture(values: &mut Values, sample: &Sample, interval: Option<Interval>) {
    let capture = sample.capture;
    values.set("dirty_pages_per_s", per_second(Some(capture.dirty_pages), interval));
    values.set("stored_bytes_per_s", per_second(Some(capture.stored_bytes), interval));
    // The ratio of few pages says nothing.
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
    let moved =
        sample.syscalls.iter().filter(|(key, to)| parent.syscalls.get(*key).is_some_and(|was| was != *to));
    values.set("syscall_changes", count_f64(moved.count()));
    let errors = sample.log.since(&parent.log).filter(|line| line.level <= Log::ERROR_LEVEL).count();
    values.set("log_lines_per_s", per_second(Some(u64_f64(sample.log.lines_since(&parent.log))), interval));
    values.set("log_errors_per_s", per_second(Some(count_f64(errors)), interval));
}
