//! The features: the numbers that are computed of a checkpoint and evaluated.

use serde::Serialize;

/// The scale of a feature, on which deviations are measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Unchanged: shares and small counts.
    Linear,
    /// Unchanged: a share of processor time, in which a short interval contains a whole burst or none.
    Share,
    /// `ln(1 + x)`: sizes and counts with a heavy tail.
    Log,
    /// `ln(1 + x)` of events per guest second: as [`Shape::Log`], with extra variance for short intervals.
    Rate,
    /// `asinh(x / unit)`: levels and changes of either sign.
    Signed(f64),
    /// `asinh(x / unit)` of a change per guest second, with extra variance for short intervals.
    Change(f64),
}

impl Shape {
    /// The value on its scale.
    pub(crate) fn apply(self, raw: f64) -> f64 {
        match self {
            Self::Linear | Self::Share => raw,
            Self::Log | Self::Rate => raw.max(0.0).ln_1p(),
            Self::Signed(unit) | Self::Change(unit) => (raw / unit).asinh(),
        }
    }

    /// The raw value for a value on the scale.
    pub(crate) fn undo(self, scaled: f64) -> f64 {
        match self {
            Self::Linear | Self::Share => scaled,
            Self::Log | Self::Rate => scaled.exp_m1(),
            Self::Signed(unit) | Self::Change(unit) => scaled.sinh() * unit,
        }
    }
}

/// The direction in which a deviation counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Deviations in both directions.
    Both,
    /// Only larger values.
    High,
    /// None: recorded, and evaluated by a rule instead of statistics.
    Recorded,
}

/// One feature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Feature {
    /// Its name, unit last.
    pub name: &'static str,
    /// What it is, as text.
    pub meaning: &'static str,
    /// Its scale.
    pub shape: Shape,
    /// The smallest standard deviation used, on its scale: smaller variation is jitter.
    pub floor: f64,
    /// The direction that counts.
    pub direction: Direction,
}

const fn feature(
    name: &'static str,
    shape: Shape,
    floor: f64,
    direction: Direction,
    meaning: &'static str,
) -> Feature {
    Feature { name, meaning, shape, floor, direction }
}

use Direction::{Both, High, Recorded};
use Shape::{Change, Linear, Log, Rate, Share, Signed};

/// Every feature, in the order in which vectors hold them.
pub const FEATURES: &[Feature] = &[
    // Tasks.
    feature("tasks", Linear, 2.0, Both, "threads alive, without the kernel's workers"),
    feature("user_tasks", Linear, 2.0, Both, "threads alive that are not the kernel's own"),
    feature("new_tasks_per_s", Rate, 0.35, High, "threads alive that the checkpoint before had not"),
    feature("exits_per_s", Rate, 0.35, High, "threads of the checkpoint before that are gone"),
    feature("forks_per_s", Rate, 0.35, Both, "tasks created, also those that are gone again"),
    feature("runnable", Linear, 1.5, High, "threads that run or want to"),
    feature("blocked", Linear, 2.0, High, "threads in uninterruptible sleep"),
    feature("zombies", Linear, 2.0, High, "dead threads that nobody has waited for"),
    feature("largest_family", Linear, 2.0, High, "most user threads of one name"),
    feature("excess_tasks", Linear, 2.0, High, "user threads beyond the most ever seen of their name"),
    feature("stranger_families", Linear, 1.0, High, "names of user tasks never seen in a clean checkpoint"),
    feature(
        "missing_families",
        Linear,
        1.0,
        High,
        "names that every clean checkpoint had and this one has not",
    ),
    // Processor time.
    feature("cpu_user_share", Share, 0.08, Both, "processor time in user space, of all there is"),
    feature("cpu_system_share", Share, 0.08, Both, "processor time in the kernel, of all there is"),
    feature("cpu_idle_share", Share, 0.08, Both, "idle processor time, of all there is"),
    feature("top_task_cpu_share", Share, 0.08, Both, "of one processor, what the busiest thread used"),
    feature(
        "excess_cpu_share",
        Share,
        0.06,
        High,
        "processors used beyond what each name ever used when clean",
    ),
    feature("load1", Linear, 0.5, High, "the kernel's one-minute load average"),
    feature("context_switches_per_s", Rate, 0.35, Both, "switches between tasks"),
    feature("interrupts_per_s", Rate, 0.35, Both, "interrupts taken"),
    // Memory.
    feature("page_faults_per_s", Rate, 0.4, Both, "page faults"),
    feature("major_faults_per_s", Rate, 0.4, High, "page faults that waited for a disk"),
    feature("allocations_per_s", Rate, 0.4, Both, "pages allocated"),
    feature("frees_per_s", Rate, 0.4, Both, "pages freed"),
    feature("free_pages", Log, 0.25, Both, "pages free"),
    feature("free_pages_change_per_s", Change(500.0), 0.4, Both, "growth of free memory"),
    feature("anon_pages", Log, 0.2, Both, "pages of processes' own memory"),
    feature("anon_pages_change_per_s", Change(500.0), 0.4, High, "growth of processes' own memory"),
    feature("file_pages", Log, 0.2, Both, "pages that hold files"),
    feature("slab_pages", Log, 0.2, Both, "pages of the kernel's own objects"),
    feature("page_table_pages", Log, 0.2, Both, "pages that hold page tables"),
    feature("largest_rss_pages", Log, 0.2, Both, "resident pages of the largest process"),
    feature(
        "excess_rss_pages",
        Signed(1000.0),
        0.4,
        High,
        "resident pages beyond the most each name ever had",
    ),
    feature("reclaimed_per_s", Rate, 0.5, High, "pages taken back under memory pressure"),
    feature("swapped_per_s", Rate, 0.5, High, "pages written to swap"),
    feature(
        "out_of_memory_kills",
        Linear,
        0.1,
        High,
        "tasks killed for want of memory since the checkpoint before",
    ),
    // From the recorder, when the checkpoint was taken. After a rollback the guest repeats itself, and the store has
    // its contents already: only larger values count.
    feature("dirty_pages_per_s", Rate, 0.4, Both, "guest pages written"),
    feature(
        "new_content_ratio",
        Linear,
        0.15,
        High,
        "of the pages written, those with contents never stored before",
    ),
    feature("zero_ratio", Linear, 0.15, Both, "of the pages written, those that hold zeros"),
    feature("stored_bytes_per_s", Rate, 0.5, High, "bytes the checkpoint added to the store"),
    // The kernel.
    feature("modules", Linear, 0.3, Both, "modules loaded"),
    feature("module_changes", Linear, 0.15, High, "modules loaded or gone since the checkpoint before"),
    feature(
        "syscall_changes",
        Linear,
        0.1,
        High,
        "system calls that lead elsewhere than in the checkpoint before",
    ),
    feature("log_lines_per_s", Rate, 0.5, High, "lines written to the kernel log"),
    feature("log_errors_per_s", Rate, 0.3, High, "of them, errors and worse"),
    feature("violations", Linear, 0.1, Recorded, "things found that are never so in a healthy guest"),
];

/// The index of a feature in a vector.
#[must_use]
pub fn position(name: &str) -> Option<usize> {
    FEATURES.iter().position(|feature| feature.name == name)
}

/// One value for each feature, in their order; `None` if unavailable.
pub(crate) type Vector = Vec<Option<f64>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_there_are_enough() {
        let names: std::collections::BTreeSet<_> = FEATURES.iter().map(|feature| feature.name).collect();
        assert_eq!(names.len(), FEATURES.len());
        assert!(names.len() >= 20);
    }

    #[test]
    fn a_shape_can_be_undone() {
        for shape in [Linear, Share, Log, Rate, Signed(500.0), Change(500.0)] {
            for raw in [0.0, 0.4, 7.0, 1e6] {
                assert!((shape.undo(shape.apply(raw)) - raw).abs() < 1e-6 * (1.0 + raw));
            }
        }
    }
}
