use retrovisor_guest::ClockPolicy;
use serde::Serialize;

use crate::catalogue::{CheckpointKind, CheckpointRecord, OperationRecord};
use crate::id::TimelineId;

/// What is asked of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// A name given by a person, at most 200 bytes.
    pub label: Option<String>,
    /// Why it is taken.
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
    /// Copying frames before the pause, while the guest still ran; 0 when there were too few for that.
    pub precopy_us: u64,
    /// From before the pause until after the resume: how long the guest stood still at most.
    pub pause_us: u64,
    /// Stopping the guest.
    pub stop_us: u64,
    /// Finding the dirty frames.
    pub find_us: u64,
    /// Copying them aside.
    pub copy_us: u64,
    /// Frames copied in the pause, including those that turned out to be zero.
    pub copied_pages: u64,
    /// Capturing everything but memory.
    pub state_us: u64,
    /// Setting the guest running again.
    pub resume_us: u64,
    /// Hashing the frames (this and what follows: of all checkpoints that were made durable together, where they share
    /// the work).
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
    /// Reading what changed on disks, and taking it in (its hashing, compressing and so on count there as well).
    pub disk_us: u64,
    /// From the guest's running on until the checkpoint was safe.
    pub durable_us: u64,
}

/// When the present must be safe that a rollback leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum CurrentPolicy {
    /// On the disk before the first page is overwritten: whatever happens to host or process, it is not lost. The guest
    /// stands still until it is.
    #[default]
    Durable,
    /// Copied in memory before the first page is overwritten, and made durable as soon as the guest runs on. If this
    /// process is killed in between, the present is lost (not the target, and no checkpoint).
    Staged,
}

/// How a machine is to go back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RollbackRequest {
    /// What the guest's clocks do.
    pub clock: ClockPolicy,
    /// When the present must be safe.
    pub current: CurrentPolicy,
    /// Why: kept with the operation (who asked, which incident). JSON object, or null.
    pub detail: serde_json::Value,
}

/// A machine that went back (or, by undo and redo, forth).
#[derive(Clone, Debug, PartialEq)]
pub struct RollbackReport {
    /// The checkpoint of the state before, which was taken first: undo goes back to it. None after a restore.
    pub current: Option<CheckpointRecord>,
    /// Where the machine stands now.
    pub target: CheckpointRecord,
    /// The timeline in which it goes on.
    pub timeline: TimelineId,
    /// Whether that timeline begins here. Undo and redo go on in the one that stood there before.
    pub new_timeline: bool,
    /// Frames written.
    pub pages_written: u64,
    /// Blocks of disks written; none where the driver kept the disks' contents.
    pub blocks_written: u64,
    /// Where the time went.
    pub timing: RollbackTiming,
    /// The operation, as recorded.
    pub operation: OperationRecord,
}

/// Where the time of a rollback went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RollbackTiming {
    /// From before the pause until the guest runs on from the past.
    pub rollback_us: u64,
    /// Reading the target's pages before the pause, while the guest still ran, and comparing them with the present's.
    pub prefetch_us: u64,
    /// Copying and storing dirty frames before the pause.
    pub precopy_us: u64,
    /// Stopping the guest.
    pub stop_us: u64,
    /// Finding the dirty frames.
    pub find_us: u64,
    /// Copying them aside.
    pub copy_us: u64,
    /// Capturing everything but memory.
    pub state_us: u64,
    /// Making the present durable, as far as it was not done while capturing; after the guest ran on, if only a copy
    /// was wanted before.
    pub durable_us: u64,
    /// Writing the frames that differ.
    pub write_us: u64,
    /// Putting vCPUs, devices and disks back.
    pub apply_us: u64,
    /// Noting in the catalogue where the machine stands.
    pub note_us: u64,
    /// Setting the guest running again.
    pub resume_us: u64,
}
