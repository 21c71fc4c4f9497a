//! The rule by which a checkpoint becomes good.
//!
//! A checkpoint becomes good when nothing was found in it, nor in the [`Config::settle_checkpoints`] checkpoints after
//! it on its timeline (3 by default). Until then its verdict is unknown, because a fault may be detected late. A
//! checkpoint that is suspect or bad, or of which too little could be read, never becomes good, and later checkpoints
//! do not make earlier ones good across it.
//!
//! [`Config::settle_checkpoints`]: crate::Config::settle_checkpoints

use std::collections::HashMap;

use retrovisor_snapshot::{CheckpointId, TimelineId};

/// The finding for a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finding {
    /// Nothing was found; too few clean ones have followed.
    Clean,
    /// Nothing was found, nor in enough checkpoints after it.
    Good,
    /// Too little could be read.
    Unreadable,
    /// It is suspect or bad, because of these features (indexes).
    Alarm(Vec<usize>),
}

/// An evaluated checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct EvaluatedCheckpoint {
    pub(crate) boot: u64,
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
        let evaluated = EvaluatedCheckpoint { boot: 0, parent, timeline: TimelineId(1), finding };
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
    fn nothing_before_an_alarm_or_an_unreadable_checkpoint_becomes_good_by_those_after_it() {
        for finding in [Finding::Alarm(vec![]), Finding::Unreadable] {
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
