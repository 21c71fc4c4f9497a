//! Lasting changes: the guest behaves otherwise than before, has kept to that for long, and no rule is broken.

use std::collections::VecDeque;

use crate::config::Config;
use crate::evaluation::Evaluation;
use crate::feature::{FEATURES, position};
use crate::model::Observation;
use crate::number::short;
use crate::sample::count_f64;
use crate::steady;

/// The newest checkpoints on the current timeline in which no rule was broken, with what was out of range in them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    entries: VecDeque<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    observation: Observation,
    /// The features that raised an alarm; none for a clean checkpoint.
    alarmed: Vec<usize>,
}

/// A lasting change of the guest's behaviour.
pub(crate) struct LastingChange {
    /// The checkpoints since the change, oldest first.
    pub(crate) observations: Vec<Observation>,
    /// The features that are out of range since then, those in most checkpoints first.
    features: Vec<usize>,
    /// For how long, in guest seconds.
    lasted_s: f64,
}

/// Bound on the checkpoints that are kept.
const ENTRIES_MAX: usize = 600;
/// A feature has changed if it is out of range in at least this share of the checkpoints of each half.
const ALARMED_SHARE_MIN: f64 = 0.1;
/// What is never accepted, however long it lasts.
const HARMFUL: [&str; 2] = ["out_of_memory_kills", "syscall_changes"];
/// Features that are named in the reason.
const NAMED_MAX: usize = 4;

impl Recent {
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Adds a checkpoint. Those that are older than a change must last are dropped.
    pub(crate) fn push(&mut self, observation: Observation, alarmed: Vec<usize>, config: &Config) {
        self.entries.push_back(Entry { observation, alarmed });
        if let Some((from, _)) = self.window(config) {
            self.entries.drain(..from);
        }
    }

    /// The change that has lasted for long enough and is stable.
    ///
    /// The same features are out of range in both halves of the newest checkpoints, whose level stays the same, and
    /// nothing grows.
    pub(crate) fn lasting_change(&self, config: &Config) -> Option<LastingChange> {
        let (from, lasted_s) = self.window(config)?;
        let window = || self.entries.range(from..);
        let half = window().len() / 2;
        let counts = |entries: &mut dyn Iterator<Item = &Entry>| {
            let mut counts = vec![0_usize; FEATURES.len()];
            for at in entries.flat_map(|entry| &entry.alarmed) {
                counts[*at] += 1;
            }
            counts
        };
        let older = counts(&mut window().take(half));
        let newer = counts(&mut window().skip(half));
        let least = ALARMED_SHARE_MIN * count_f64(half);
        let mut features: Vec<usize> =
            (0..FEATURES.len()).filter(|at| count_f64(older[*at].min(newer[*at])) >= least).collect();
        features.sort_by_key(|at| std::cmp::Reverse(older[*at] + newer[*at]));
        // The window begins with the change, or within it.
        if !window().next()?.alarmed.iter().any(|at| features.contains(at)) {
            return None;
        }
        let observations = || window().map(|entry| &entry.observation);
        let is_harmful = HARMFUL
            .into_iter()
            .filter_map(position)
            .any(|at| observations().any(|o| o.vector.get(at).copied().flatten().is_some_and(|x| x > 0.0)));
        let mut all = features.iter().copied().chain(steady::main_features());
        let mut growing = features.iter().copied().chain(steady::leaking_features());
        if is_harmful
            || all.any(|at| steady::shift(observations(), at).is_some())
            || growing.any(|at| steady::grows(observations(), at))
        {
            return None;
        }
        Some(LastingChange { observations: observations().cloned().collect(), features, lasted_s })
    }

    /// The shortest window of the newest checkpoints that is long enough: where it begins, and its guest time.
    fn window(&self, config: &Config) -> Option<(usize, f64)> {
        let mut lasted_s = 0.0;
        for (count, entry) in self.entries.iter().rev().enumerate() {
            lasted_s += entry.observation.moment.interval_s;
            let is_long = lasted_s >= config.lasting_s || count + 1 == ENTRIES_MAX;
            if is_long && count + 1 >= config.lasting_checkpoints.min(ENTRIES_MAX) {
                return Some((self.entries.len() - count - 1, lasted_s));
            }
        }
        None
    }
}

impl LastingChange {
    pub(crate) fn reason(&self) -> String {
        let names: Vec<_> =
            self.features.iter().take(NAMED_MAX).filter_map(|at| Some(FEATURES.get(*at)?.name)).collect();
        let more = self.features.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!(
            "{}: {}{more} stayed at a new level for {} s and {} checkpoints, which is normal from now on",
            Evaluation::CHANGE_ACCEPTED,
            names.join(", "),
            short(self.lasted_s),
            self.observations.len()
        )
    }
}
