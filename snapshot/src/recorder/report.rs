use retrovisor_guest::ClockPolicy;
use serde::Serialize;

use crate::catalogue::{CheckpointKind, CheckpointRecord, OperationRecord, RollbackKind};
use crate::id::TimelineId;

/// A request for a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// A name given by the user, at most 200 bytes.
    pub label: Option<String>,
    /// Its kind.
    pub kind: CheckpointKind,
}

/// A checkpoint that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointReport {
    /// The checkpoint.
    pub record: CheckpointRecord,
    /// Where the time went.
    pub timing: CheckpointTiming,
}

/// Where the time of a checkpoint went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckpointTiming {
    /// Copying frames before the pause, while the guest ran; 0 if there were too few for that.
    pub precopy_us: u64,
    /// From before the pause until after the resume: the guest was paused for at most this long.
    pub pause_us: u64,
    /// Pausing the guest.
    pub stop_us: u64,
    /// Finding the dirty frames.
    pub find_us: u64,
    /// Copying them.
    pub copy_us: u64,
    /// Frames copied in the pause, including those that turned out to be zero.
    pub copied_pages: u64,
    /// Copying frames that were not reported, for the audit.
    pub audit_us: u64,
    /// Capturing everything but memory.
    pub state_us: u64,
    /// Resuming the guest.
    pub resume_us: u64,
    /// Hashing the frames. This and the following times are those of all checkpoints that were made durable together.
    pub hash_us: u64,
    /// Finding out which contents are known.
    pub dedupe_us: u64,
    /// Compressing the others.
    pub compress_us: u64,
    /// Appending them to a pack.
    pub write_us: u64,
    /// Waiting until the pack is on the disk.
    pub sync_us: u64,
    /// Committing to the catalogue, on the disk as well.
    pub commit_us: u64,
    /// Reading what changed on disks and adding it; its hashing, compressing and so on are also counted above.
    pub disk_us: u64,
    /// From the resume until the checkpoint was durable.
    pub durable_us: u64,
    /// Comparing with it, after that, what was copied for the audit, and blocks of disks.
    pub compare_us: u64,
}

/// When the current state, which a rollback replaces, must be durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum CurrentPolicy {
    /// On the disk before the first page is overwritten: whatever happens to host or process, it is not lost. The
    /// guest is paused until it is.
    #[default]
    Durable,
    /// Copied in memory before the first page is overwritten, and made durable once the guest is resumed. If this
    /// process is killed in between, the current state is lost (not the target, and no checkpoint).
    Staged,
}

/// The options of a rollback.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RollbackRequest {
    /// The policy for the guest's clocks.
    pub clock: ClockPolicy,
    /// When the current state must be durable.
    pub current: CurrentPolicy,
    /// The reason, kept with the operation (the user, the incident). JSON object, or null.
    pub detail: serde_json::Value,
}

/// A rollback, undo, redo or restore that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct RollbackReport {
    /// Its kind.
    pub kind: RollbackKind,
    /// The checkpoint of the state before, which was taken first: undo returns to it. None after a restore.
    pub current: Option<CheckpointRecord>,
    /// The checkpoint that the machine's state is based on now.
    pub target: CheckpointRecord,
    /// The timeline that the machine continues.
    pub timeline: TimelineId,
    /// Whether that timeline begins here. Undo and redo continue the timeline of their target.
    pub new_timeline: bool,
    /// Frames written.
    pub pages_written: u64,
    /// Blocks of disks written; none if the driver retained the disks' contents.
    pub blocks_written: u64,
    /// Where the time went.
    pub timing: RollbackTiming,
    /// The operation, as recorded.
    pub operation: OperationRecord,
}

/// Where the time of a rollback went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RollbackTiming {
    /// From before the pause until after the resume.
    pub rollback_us: u64,
    /// Reading the target's pages before the pause, and comparing them with the current ones.
    pub prefetch_us: u64,
    /// Copying and storing dirty frames before the pause.
    pub precopy_us: u64,
    /// Pausing the guest.
    pub stop_us: u64,
    /// Finding the dirty frames.
    pub find_us: u64,
    /// Copying them.
    pub copy_us: u64,
    /// Capturing everything but memory.
    pub state_us: u64,
    /// Making the current state durable, as far as it was not done while capturing; of a staged rollback, after the
    /// resume.
    pub durable_us: u64,
    /// Writing the frames that differ.
    pub write_us: u64,
    /// Applying vCPUs, devices and disks.
    pub apply_us: u64,
    /// Recording the operation as done.
    pub note_us: u64,
    /// Resuming the guest.
    pub resume_us: u64,
}
