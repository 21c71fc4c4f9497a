use retrovisor_snapshot::{CheckpointRecord, RollbackKind};

/// A finished rollback, undo, redo or restore.
#[derive(Clone, Debug)]
pub struct Rollback {
    /// What it was.
    pub kind: RollbackKind,
    /// The name of its operation; empty for a plan.
    pub operation: String,
    /// The checkpoint that keeps the state before it, if one was taken.
    pub current: Option<CheckpointRecord>,
    /// The checkpoint that the machine is at now.
    pub target: CheckpointRecord,
    /// Checkpoints back from `current` to `target` along parents; 0 when `target` is no ancestor.
    pub steps: u32,
    /// Pages of memory that were written.
    pub pages_written: u64,
    /// From the pause until the guest ran again, in microseconds.
    pub rollback_us: u64,
    /// Whether the state was given to a new process.
    pub new_process: bool,
    /// Whether memory had the hash of the checkpoint afterwards; `None` when that was not asked for.
    pub image_matches: Option<bool>,
}
