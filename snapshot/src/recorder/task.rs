use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use retrovisor_guest::{MachineState, PageSet};

use super::pending::Stored;
use super::report::{CheckpointRequest, CheckpointTiming};
use super::staging::Staged;
use crate::catalogue::Move;
use crate::disk::DiskDraft;
use crate::error::Result;

/// What the storing thread is given.
pub(super) enum Task {
    /// Frames copied before the capture they belong to is complete. With a sender: they are to be on the disk, and the
    /// sender is to be told.
    Early(Vec<Staged>, Option<Sender<Result<()>>>),
    /// A complete capture.
    Capture(Box<Capture>),
    /// There will be no capture to the early frames.
    GiveUp,
}

/// Everything of a captured instant that is to become a checkpoint.
pub(super) struct Capture {
    pub(super) generation: u64,
    pub(super) request: CheckpointRequest,
    pub(super) at_ms: i64,
    pub(super) state: MachineState,
    pub(super) disks: Vec<DiskDraft>,
    /// Copied frames, in order of copying: later ones override earlier ones.
    pub(super) staged: Arc<Vec<Staged>>,
    /// All frames that were dirty.
    pub(super) dirty: PageSet,
    pub(super) timing: CheckpointTiming,
    /// When the guest ran on.
    pub(super) since: Instant,
    pub(super) moving: Option<Moving>,
    pub(super) outcome: Sender<Result<Stored>>,
}

/// The machine is about to leave a checkpoint, or has left it.
pub(super) enum Moving {
    Begins(Move),
    Happened(Move),
}

/// What became of one capture.
pub(super) struct Done {
    /// When it failed: its dirty frames, and the state that must be released.
    pub(super) failed: Option<(PageSet, MachineState)>,
}
