use serde::Serialize;

/// How far a prune or a compaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PruneProgress {
    /// What is being done.
    pub step: PruneStep,
    /// How much of it is done.
    pub done: u64,
    /// How much there is of it.
    pub total: u64,
}

/// The steps of a prune, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneStep {
    /// Joining the changes of checkpoints that go to those that stay: counts these.
    Merge,
    /// Removing checkpoints.
    Remove,
    /// Looking which contents are still referred to: counts checkpoints.
    Mark,
    /// Removing contents that are not.
    Sweep,
    /// Rewriting packs: counts bytes.
    Rewrite,
    /// Giving the catalogue's free space back.
    Vacuum,
}
