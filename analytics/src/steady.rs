//! Whether the values of consecutive checkpoints stay at one level.

use crate::feature::{FEATURES, Feature, position};
use crate::model::Observation;
use crate::order::{median, quantile, sorted, spread};
use crate::sample::count_f64;

/// The features whose level shows whether a guest has settled: its load, its memory and its tasks.
const MAIN: [&str; 8] = [
    "user_tasks",
    "cpu_idle_share",
    "context_switches_per_s",
    "page_faults_per_s",
    "allocations_per_s",
    "anon_pages",
    "forks_per_s",
    "dirty_pages_per_s",
];
/// The features whose growth is a leak. The kernel's own objects grow with the files that it keeps in memory.
const LEAKING: [&str; 5] = ["tasks", "anon_pages", "largest_rss_pages", "excess_rss_pages", "excess_tasks"];
/// A difference between the medians of two parts of a window, in robust standard deviations, beyond which the level
/// changed.
const SHIFT_SPREADS_MIN: f64 = 3.0;
/// A part of a window with fewer values has no meaningful spread.
const SPREAD_VALUES_MIN: usize = 8;
/// Parts of a window whose medians are compared to find growth.
const PARTS: usize = 8;
/// Kendall's tau of those medians with time, from which they grow: 1 is growth in each part. By chance 0.5 is reached
/// in 5 of 100 windows.
const TAU_MIN: f64 = 0.5;
/// Smallest growth over a window that counts, in the feature's floors: 1 % of a size.
const GROWTH_FLOORS_MIN: f64 = 0.05;

/// A change of a feature's level within a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shift {
    pub(crate) feature: Feature,
    /// The raw medians before and after it.
    pub(crate) from: f64,
    pub(crate) to: f64,
}

/// Indexes of the main features.
pub(crate) fn main_features() -> impl Iterator<Item = usize> {
    MAIN.into_iter().filter_map(position)
}

/// Indexes of the features whose growth is a leak.
pub(crate) fn leaking_features() -> impl Iterator<Item = usize> {
    LEAKING.into_iter().filter_map(position)
}

/// The change of level of a feature within a window; `None` if it stays at its level.
///
/// The first quarter is compared with the rest, and the first half with the second: by their medians, in units of the
/// smallest of the spreads. So a wild part does not hide that another is quiet.
pub(crate) fn shift<'a>(window: impl Iterator<Item = &'a Observation>, feature: usize) -> Option<Shift> {
    let described = *FEATURES.get(feature)?;
    let values: Vec<f64> = window
        .filter_map(|observation| observation.vector.get(feature).copied().flatten())
        .map(|raw| described.shape.apply(raw))
        .collect();
    [values.len() / 4, values.len() / 2].into_iter().find_map(|at| {
        let (older, newer) = values.split_at(at);
        let (older, newer) = (sorted(older.iter().copied()), sorted(newer.iter().copied()));
        let (from, to) = (quantile(&older, 0.5)?, quantile(&newer, 0.5)?);
        let long = [&older, &newer].into_iter().filter(|part| part.len() >= SPREAD_VALUES_MIN);
        let usual = long.filter_map(|part| spread(part)).reduce(f64::min)?.max(described.floor);
        let undo = |scaled| described.shape.undo(scaled);
        ((to - from).abs() > SHIFT_SPREADS_MIN * usual).then(|| Shift {
            feature: described,
            from: undo(from),
            to: undo(to),
        })
    })
}

/// Whether a feature grows throughout a window, however slowly.
pub(crate) fn grows<'a>(window: impl ExactSizeIterator<Item = &'a Observation>, feature: usize) -> bool {
    let Some(described) = FEATURES.get(feature) else { return false };
    let length = window.len().div_ceil(PARTS).max(1);
    let mut parts = vec![Vec::new(); PARTS];
    for (at, observation) in window.enumerate() {
        if let (Some(part), Some(raw)) =
            (parts.get_mut(at / length), observation.vector.get(feature).copied().flatten())
        {
            part.push(described.shape.apply(raw));
        }
    }
    let medians: Vec<f64> = parts.into_iter().filter_map(median).collect();
    let Some((first, last)) = medians.first().zip(medians.last()) else { return false };
    last - first > GROWTH_FLOORS_MIN * described.floor && tau(&medians) >= TAU_MIN
}

/// Kendall's tau of values with their order: 1 if each is larger than those before it, -1 if each is smaller.
fn tau(values: &[f64]) -> f64 {
    let (mut sum, mut pairs) = (0.0, 0);
    for (at, earlier) in values.iter().enumerate() {
        for later in &values[at + 1..] {
            pairs += 1;
            sum += match later.total_cmp(earlier) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.0,
                std::cmp::Ordering::Less => -1.0,
            };
        }
    }
    sum / count_f64(pairs.max(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use retrovisor_snapshot::CheckpointId;

    use super::*;
    use crate::activity::Activity;
    use crate::scale::Moment;

    fn window(name: &str, values: impl Iterator<Item = f64>) -> Vec<Observation> {
        let mut observations = Vec::new();
        for raw in values {
            let mut vector = vec![None; FEATURES.len()];
            vector[position(name).unwrap()] = Some(raw);
            observations.push(Observation {
                checkpoint: CheckpointId(1),
                moment: Moment::default(),
                vector,
                activity: Activity::new(),
                counters: BTreeMap::new(),
            });
        }
        observations
    }

    #[test]
    fn a_level_that_changes_in_either_direction_is_found_and_jitter_is_not() {
        let name = "allocations_per_s";
        let at = position(name).unwrap();
        let jitter = |level: f64| (0..20).map(move |i| level * (1.0 + 0.1 * f64::from(i % 5)));
        assert_eq!(shift(window(name, jitter(500.0)).iter(), at), None);
        for (from, to) in [(500.0, 9000.0), (9000.0, 500.0)] {
            let changed = window(name, jitter(from).chain(jitter(to)));
            let found = shift(changed.iter(), at).unwrap();
            assert_eq!((found.feature.name, found.from < found.to), (name, from < to));
        }
        // A wild half and a quiet one.
        let wild = (0..20).map(|i| 600.0 * 1.15_f64.powi(i));
        assert!(shift(window(name, wild.chain(jitter(15.0))).iter(), at).is_some());
    }

    #[test]
    fn slow_growth_is_found_under_noise_and_a_level_does_not_grow() {
        let name = "anon_pages";
        let at = position(name).unwrap();
        let noise = |i: u32| f64::from(i * 7919 % 101) - 50.0;
        let leak = (0..120).map(|i| 10_000.0 + 10.0 * f64::from(i) + noise(i));
        assert!(grows(window(name, leak).iter(), at));
        let level = (0..120).map(|i| 10_000.0 + noise(i));
        assert!(!grows(window(name, level).iter(), at));
        let falls = (0..120).map(|i| 10_000.0 - 10.0 * f64::from(i));
        assert!(!grows(window(name, falls).iter(), at));
    }
}
