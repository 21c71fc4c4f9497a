use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use retrovisor_guest::{MachineState, PageSet};

use super::audit::Sampled;
use super::report::{CheckpointRequest, CheckpointTiming};
use super::staging::Staged;
use crate::catalogue::{Committed, Rollback};
use crate::disk::CapturedDisk;
use crate::error::Result;

/// A captured instant: everything that is to become a checkpoint.
pub(super) struct Captured {
    pub(super) request: CheckpointRequest,
    pub(super) at_ms: i64,
    pub(super) state: MachineState,
    /// What changed on its disks; added right before it is submitted.
    pub(super) disks: Vec<CapturedDisk>,
    /// Copied frames, in the order of copying: later ones override earlier ones.
    pub(super) staged: Arc<Vec<Staged>>,
    /// All frames that were dirty; added when it is submitted.
    pub(super) dirty: PageSet,
    pub(super) timing: CheckpointTiming,
    /// When the guest was resumed.
    pub(super) since: Instant,
    /// The rollback that this is the state before of.
    pub(super) rollback: Option<RollbackStage>,
    /// What was copied for the audit.
    pub(super) sampled: Option<Sampled>,
}

/// Progress of the rollback when the state before it is stored.
pub(super) enum RollbackStage {
    Started(Rollback),
    Done(Rollback),
}

/// The outcome of a captured instant.
pub(super) type Outcome = Result<(Committed, CheckpointTiming)>;

/// A captured instant on its way to the storing thread.
pub(super) struct Job {
    pub(super) captured: Captured,
    pub(super) generation: u64,
    pub(super) outcome: Sender<Outcome>,
}

/// What the storing thread receives.
pub(super) enum Task {
    /// Frames that were copied before the capture they belong to is complete. With a sender: it is answered once they
    /// are on the disk and the storing thread holds the content writer.
    Early(Vec<Staged>, Option<Sender<Result<()>>>),
    /// A complete capture.
    Store(Box<Job>),
    /// The capture that the early frames belong to was abandoned.
    AbandonEarly,
}

/// The outcome of one capture, for the recorder.
pub(super) enum Done {
    /// It is durable.
    Stored {
        /// Whether memory differed from the checkpoint.
        is_mismatched: bool,
    },
    /// It could not be stored.
    Failed {
        /// Its dirty frames.
        dirty: PageSet,
        /// The state that must be released.
        state: MachineState,
        /// Where its part of the audit's walk begins.
        sampled_from: Option<u64>,
    },
}
