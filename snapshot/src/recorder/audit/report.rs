use std::ops::RangeInclusive;

use retrovisor_guest::Gfn;
use serde::Serialize;

use crate::catalogue::CheckpointRecord;

/// What an audit of a machine's whole memory, and of its disks, found.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditReport {
    /// The checkpoint that the memory was compared with: the one that the current state is based on.
    pub checkpoint: CheckpointRecord,
    /// Frames of the machine.
    pub pages: u64,
    /// Frames that were compared.
    pub compared_pages: u64,
    /// Frames that were not, because they were written since the checkpoint: the next one has them.
    pub written_pages: u64,
    /// Frames that were compared and are not what the checkpoint says.
    pub mismatched_pages: u64,
    /// The first of them.
    pub mismatches: Vec<Gfn>,
    /// Its disks.
    pub disks: Vec<DiskAuditReport>,
    /// The sequence numbers of the checkpoints that are doubtful because of what differs.
    pub doubtful: Option<RangeInclusive<u64>>,
    /// Where the time went.
    pub timing: AuditTiming,
}

/// Where the time of an audit went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuditTiming {
    /// How often the guest was paused.
    pub pauses: u64,
    /// The longest of these pauses, in microseconds.
    pub pause_max_us: u64,
    /// All of them, in microseconds.
    pub pause_us: u64,
    /// From the beginning to the end, in microseconds.
    pub total_us: u64,
}

impl AuditReport {
    /// Blocks of all disks that were compared and are not what the checkpoint says.
    #[must_use]
    pub fn mismatched_blocks(&self) -> u64 {
        self.disks.iter().map(|disk| disk.mismatched_blocks).sum()
    }

    pub(super) fn add_doubtful(&mut self, more: Option<RangeInclusive<u64>>) {
        let Some(more) = more else { return };
        self.doubtful = Some(match &self.doubtful {
            Some(known) => *known.start().min(more.start())..=*known.end().max(more.end()),
            None => more,
        });
    }
}

/// What an audit of a whole disk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskAuditReport {
    /// The disk's name.
    pub disk: String,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Blocks that were compared; those that are in the base image, there and in the checkpoint, count.
    pub compared_blocks: u64,
    /// Blocks that were compared and are not what the checkpoint says.
    pub mismatched_blocks: u64,
    /// The first of them.
    pub mismatches: Vec<u64>,
    /// Why the disk was not compared, as a sentence; empty if it was.
    pub not_compared: String,
}
