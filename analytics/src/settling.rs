//! The wait until a guest has settled. A booting guest is not learnt from: what is usual while its services start is
//! not usual afterwards.

use std::collections::{BTreeMap, VecDeque};

use crate::config::Config;
use crate::model::Observation;
use crate::number::short;
use crate::steady;

/// The checkpoints of a guest that has not settled yet.
///
/// A guest has settled when there is a window of the newest checkpoints, as long as the first baseline or 2, 4 or 8
/// times as long, in which
///
/// - the level of each main feature stays the same, and
/// - no user task that is still alive has a name that appeared within it: a service that started.
///
/// That window is then the first baseline. A guest with a load that repeats itself slowly settles by a longer window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settling {
    /// The newest observations, oldest first.
    window: VecDeque<Observation>,
    /// When each name of a user task appeared first, as the number of the observation.
    appeared: BTreeMap<String, usize>,
    observed: usize,
    guest_s: f64,
    /// Why the guest has not settled yet.
    why: String,
}

/// How a guest settled.
pub(crate) struct Settled {
    /// The first baseline.
    pub(crate) baseline: VecDeque<Observation>,
    /// What still changed when the longest wait ended.
    pub(crate) still_changing: Option<String>,
}

/// The longest window, in baselines.
const LENGTH_MAX: usize = 8;
/// The longest wait, in baselines; the guest time is [`Config::settling_s`].
const WAIT_BASELINES: usize = 3;
/// Bound on the names: a guest makes as many as it likes.
const NAMES_MAX: usize = 8192;

impl Settling {
    /// Adds a clean observation; the first baseline, once the guest has settled.
    pub(crate) fn add(&mut self, observation: Observation, config: &Config) -> Option<Settled> {
        self.guest_s += observation.moment.interval_s;
        for (name, usage) in &observation.activity {
            if !usage.kernel && self.appeared.len() < NAMES_MAX && !self.appeared.contains_key(name) {
                self.appeared.insert(name.clone(), self.observed);
            }
        }
        self.observed += 1;
        self.window.push_back(observation);
        if self.window.len() > LENGTH_MAX * config.baseline() {
            self.window.pop_front();
        }
        if self.window.len() < config.baseline() {
            self.why = format!("{} of at least {} checkpoints", self.window.len(), config.baseline());
            return None;
        }
        let lengths = std::iter::successors(Some(config.baseline()), |length| Some(length * 2));
        let mut reasons = Vec::new();
        for length in lengths.take_while(|length| *length <= self.window.len()) {
            match self.change(length) {
                None => return Some(self.settled(length, None)),
                Some(why) => reasons.push(why),
            }
        }
        // The longest window shows for how long something has been changing.
        self.why = reasons.pop().unwrap_or_default();
        let waited = WAIT_BASELINES * config.baseline();
        (self.observed >= waited && self.guest_s >= config.settling_s)
            .then(|| self.settled(waited, Some(self.why.clone())))
    }

    /// Why the guest has not settled yet.
    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// What changes within the newest checkpoints; `None` if nothing does.
    fn change(&self, length: usize) -> Option<String> {
        let newest = || self.window.range(self.window.len() - length..);
        let first = self.observed - length;
        let started = self.window.back().and_then(|last| {
            // A command that starts again for each checkpoint is no service.
            let mut lasting = last.activity.iter().filter(|(_, usage)| usage.new_tasks < usage.tasks);
            lasting.find(|(name, _)| self.appeared.get(*name).is_some_and(|at| *at > first))
        });
        if let Some((name, _)) = started {
            return Some(format!("task `{name}` has started"));
        }
        steady::main_features().find_map(|feature| steady::shift(newest(), feature)).map(|shift| {
            format!("{} changed from {} to {}", shift.feature.name, short(shift.from), short(shift.to))
        })
    }

    fn settled(&self, length: usize, still_changing: Option<String>) -> Settled {
        let from = self.window.len().saturating_sub(length);
        Settled { baseline: self.window.range(from..).cloned().collect(), still_changing }
    }
}
