//! The rule by which a checkpoint becomes good.
//!
//! A checkpoint becomes good when nothing was found in it, nor in the [`Config::settle_checkpoints`] checkpoints after
//! it on its timeline (3 by default). Until then its verdict is unknown, because a fault may be detected late. A
//! checkpoint that is suspect or bad, or of which too little could be read, never becomes good, and later checkpoints
//! do not make earlier ones good across it.
//!
//! A checkpoint of a guest that had not settled yet is never good: its state is one that the guest only passes through.
//! Those from which the first baseline was learnt count like others.
//!
//! [`Config::settle_checkpoints`]: crate::Config::settle_checkpoints

use std::collections::HashMap;

use retrovisor_snapshot::{CheckpointId, TimelineId};

use crate::boot::Boot;

/// The finding for a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finding {
    /// Nothing was found; too few clean ones have followed.
    Clean,
    /// Nothing was found, nor in enough checkpoints after it.
    Good,
    /// Too little could be read.
    Unreadable,
    /// No rule was broken, and nothing is known with which it could be compared: the guest settles.
    Settling,
    /// It is suspect or bad, because of these features (indexes).
    Alarm(Vec<usize>),
}

/// An evaluated checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct EvaluatedCheckpoint {
    /// The number of its segment.
    pub(crate) segment: u64,
    /// The boot as identified by it and by the earlier checkpoints of the same boot.
    pub(crate) shown: Boot,
    pub(crate) parent: Option<CheckpointId>,
    pub(crate) timeline: TimelineId,
    pub(crate) finding: Finding,
}

/// The checkpoints of a machine that were evaluated.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts {
    checkpoints: HashMap<CheckpointId, EvaluatedCheckpoint>,
}

impl Verdicts {
    pub(crate) fn get(&self, checkpoint: CheckpointId) -> Option<&EvaluatedCheckpoint> {
        self.checkpoints.get(&checkpoint)
    }

    /// Whether enough clean checkpoints followed this one.
    pub(crate) fn is_good(&self, checkpoint: CheckpointId) -> bool {
        self.get(checkpoint).is_some_and(|evaluated| evaluated.finding == Finding::Good)
    }

    /// Adds a checkpoint. Returns whether it is new.
    pub(crate) fn insert(&mut self, checkpoint: CheckpointId, evaluated: EvaluatedCheckpoint) -> bool {
        self.checkpoints.insert(checkpoint, evaluated).is_none()
    }

    /// Marks the settling ancestors of a checkpoint as clean, from `first` on: the guest had settled. The machine's first
    /// checkpoint, which has no rates, counts like the one after it.
    pub(crate) fn mark_settled(&mut self, newest: CheckpointId, first: CheckpointId) {
        let before = self.get(first).and_then(|evaluated| evaluated.parent);
        let is_root = |parent: &CheckpointId| self.get(*parent).is_some_and(|known| known.parent.is_none());
        let oldest = before.filter(is_root).unwrap_or(first);
        let mut at = newest;
        while let Some(evaluated) = self.checkpoints.get_mut(&at)
            && evaluated.finding == Finding::Settling
        {
            evaluated.finding = Finding::Clean;
            match evaluated.parent {
                Some(parent) if parent < at && parent >= oldest => at = parent,
                _ => break,
            }
        }
    }

    /// Marks as good those ancestors of a clean checkpoint that at least `settle_checkpoints` clean ones follow, up to
    /// the first one that is not clean. Returns those that became good, oldest first.
    pub(crate) fn mark_good(&mut self, newest: CheckpointId, settle_checkpoints: usize) -> Vec<CheckpointId> {
        let mut newly_good = Vec::new();
        let (mut at, mut followers) = (newest, 0);
        while let Some(evaluated) = self.checkpoints.get_mut(&at) {
            if evaluated.finding != Finding::Clean {
                break;
            }
            let parent = evaluated.parent;
            if followers >= settle_checkpoints {
                evaluated.finding = Finding::Good;
                newly_good.push(at);
            }
            followers += 1;
            match parent {
                // A parent is always older: damaged links cannot make a circle.
                Some(parent) if parent < at => at = parent,
                _ => break,
            }
        }
        newly_good.reverse();
        newly_good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [i64; 0] = [];

    fn insert(verdicts: &mut Verdicts, id: i64, parent: Option<i64>, finding: Finding) -> Vec<i64> {
        let is_clean = finding == Finding::Clean;
        let parent = parent.map(CheckpointId);
        let shown = Boot::default();
        let evaluated = EvaluatedCheckpoint { segment: 0, shown, parent, timeline: TimelineId(1), finding };
        assert!(verdicts.insert(CheckpointId(id), evaluated));
        let good = if is_clean { verdicts.mark_good(CheckpointId(id), 2) } else { Vec::new() };
        good.into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn a_checkpoint_is_good_once_enough_clean_ones_follow_it_on_its_timeline() {
        let mut verdicts = Verdicts::default();
        assert_eq!(insert(&mut verdicts, 1, None, Finding::Clean), NONE);
        assert_eq!(insert(&mut verdicts, 2, Some(1), Finding::Clean), NONE);
        // Another timeline from 1: neither proves the other.
        assert_eq!(insert(&mut verdicts, 3, Some(1), Finding::Clean), NONE);
        assert_eq!(insert(&mut verdicts, 4, Some(2), Finding::Clean), [1]);
        assert_eq!(insert(&mut verdicts, 5, Some(4), Finding::Clean), [2]);
        assert!(verdicts.is_good(CheckpointId(1)) && !verdicts.is_good(CheckpointId(3)));
    }

    #[test]
    fn only_those_from_which_the_baseline_was_learnt_become_clean_when_the_guest_has_settled() {
        let mut verdicts = Verdicts::default();
        for id in 1..=6 {
            insert(&mut verdicts, id, (id > 1).then(|| id - 1), Finding::Settling);
        }
        verdicts.mark_settled(CheckpointId(6), CheckpointId(4));
        assert_eq!(verdicts.mark_good(CheckpointId(6), 2), [CheckpointId(4)]);
        assert_eq!(verdicts.get(CheckpointId(3)).unwrap().finding, Finding::Settling);
    }

    #[test]
    fn nothing_before_an_alarm_or_an_unreadable_checkpoint_becomes_good_by_those_after_it() {
        for finding in [Finding::Alarm(vec![]), Finding::Unreadable, Finding::Settling] {
            let mut verdicts = Verdicts::default();
            assert_eq!(insert(&mut verdicts, 1, None, Finding::Clean), NONE);
            assert_eq!(insert(&mut verdicts, 2, Some(1), finding), NONE);
            for id in 3..5 {
                assert_eq!(insert(&mut verdicts, id, Some(id - 1), Finding::Clean), NONE);
            }
            assert_eq!(insert(&mut verdicts, 5, Some(4), Finding::Clean), [3]);
            assert!(!verdicts.is_good(CheckpointId(1)) && !verdicts.is_good(CheckpointId(2)));
        }
    }
}
