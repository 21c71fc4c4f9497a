use serde::Serialize;

/// Progress of a prune or a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PruneProgress {
    /// The step.
    pub step: PruneStep,
    /// The amount done.
    pub done: u64,
    /// The total amount.
    pub total: u64,
}

/// The steps of a prune, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneStep {
    /// Joining the changes of removed checkpoints to those that stay: counts these.
    Merge,
    /// Removing checkpoints.
    Remove,
    /// Finding the contents with references: counts checkpoints.
    Mark,
    /// Removing contents without references.
    Sweep,
    /// Rewriting packs: counts bytes.
    Rewrite,
    /// Freeing the catalogue's unused space.
    Vacuum,
}
