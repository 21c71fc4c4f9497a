use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::coverage::Coverage;
use super::disk_ledger::{DiskAuditStatus, DiskLedger};
use super::ledger::Ledger;
use crate::clock::now_ms;

/// Blocks with data of each disk that are compared at a checkpoint, at most: with those of the last piece they are no more
/// than a driver reads at once.
const BLOCKS_MAX: u64 = 240;

/// How much of a machine's memory is proven: compared with a checkpoint, or copied for one in its pause. And of its
/// disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditStatus {
    /// Frames compared at each checkpoint; 0 if the audit is off.
    pub frames_per_checkpoint: u64,
    /// Frames of the machine.
    pub pages: u64,
    /// Frames proven since `since_ms`.
    pub proven_pages: u64,
    /// Since when they are counted: milliseconds since 1970 UTC.
    pub since_ms: i64,
    /// Frames that differed from a checkpoint, since the recorder began.
    pub mismatches: u64,
    /// When the last of them was found.
    pub last_mismatch_ms: Option<i64>,
    /// Whether the next checkpoint looks at every frame because of it.
    pub needs_full: bool,
    /// Blocks with data of each disk that are compared at each checkpoint; 0 if disks are not audited.
    pub blocks_per_checkpoint: u64,
    /// The disks that were captured since the recorder began, by name.
    pub disks: Vec<DiskAuditStatus>,
    /// Whether the next checkpoint looks at every written block, because one differed from a checkpoint.
    pub needs_full_disks: bool,
}

impl AuditStatus {
    /// Blocks of all disks that differed from a checkpoint, since the recorder began.
    #[must_use]
    pub fn mismatched_blocks(&self) -> u64 {
        self.disks.iter().map(|disk| disk.mismatches).sum()
    }
}

/// What the recording thread and the storing thread know of the audit. The lock is not taken in a pause.
pub(in crate::recorder) type SharedAudit = Arc<Mutex<AuditState>>;

/// What is known so far.
pub(in crate::recorder) struct AuditState {
    pub(super) ledger: Ledger,
    /// A mismatch was found: checkpoints are doubtful until one has looked at every frame.
    pub(super) needs_full: bool,
    pages: u64,
    coverage: Coverage,
    mismatches: u64,
    last_mismatch_ms: Option<i64>,
    /// Blocks with data of each disk to compare at each checkpoint. 0: none.
    blocks: u64,
    disks: BTreeMap<String, DiskLedger>,
    /// A mismatch was found on a disk: checkpoints are doubtful until one has looked at every written block.
    pub(super) needs_full_disks: bool,
    /// Checkpoints up to this one are not concerned.
    newest_at_first: u64,
}

impl AuditState {
    /// Nothing is proven yet; `newest` is the sequence number of the machine's newest checkpoint, `blocks` how many of each
    /// disk to compare at each checkpoint.
    pub(in crate::recorder) fn new(pages: u64, newest: u64, blocks: u64) -> Self {
        Self {
            ledger: Ledger::new(pages, newest),
            needs_full: false,
            pages,
            coverage: Coverage::new(pages),
            mismatches: 0,
            last_mismatch_ms: None,
            blocks: blocks.min(BLOCKS_MAX),
            disks: BTreeMap::new(),
            needs_full_disks: false,
            newest_at_first: newest,
        }
    }

    /// The memory was replaced by that of a checkpoint, in every frame.
    pub(in crate::recorder) fn reset(&mut self, newest: u64) {
        self.ledger.reset(newest);
        self.needs_full = false;
    }

    /// The walk was compared up to this position.
    pub(super) fn walked_to(&mut self, position: u64) {
        self.coverage.walked_to(position);
    }

    /// An audit of the whole memory that began then has compared this many frames.
    pub(super) fn audited(&mut self, since_ms: i64, compared: u64) {
        self.coverage.audited(since_ms, compared);
    }

    /// This many frames were not what a checkpoint says. Returns whether this was not known of any frame before.
    pub(super) fn mismatched(&mut self, frames: u64) -> bool {
        self.mismatches += frames;
        self.last_mismatch_ms = Some(now_ms());
        !std::mem::replace(&mut self.needs_full, true)
    }

    /// Blocks with data of each disk to compare at each checkpoint. 0: none.
    pub(in crate::recorder) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether the next checkpoint is to look at every written block of the disks.
    pub(in crate::recorder) fn needs_full_disks(&self) -> bool {
        self.needs_full_disks
    }

    /// What is known of a disk of this many blocks.
    pub(super) fn disk(&mut self, name: &str, blocks: u64) -> &mut DiskLedger {
        let new = || DiskLedger::new(blocks, self.newest_at_first, rand::random());
        let ledger = self.disks.entry(name.to_owned()).or_insert_with(new);
        if ledger.blocks() != blocks {
            *ledger = new();
        }
        ledger
    }

    /// What is known, for users.
    pub(in crate::recorder) fn status(&self, frames_per_checkpoint: u64) -> AuditStatus {
        let (since_ms, proven_pages) = self.coverage.proven();
        AuditStatus {
            frames_per_checkpoint,
            pages: self.pages,
            proven_pages,
            since_ms,
            mismatches: self.mismatches,
            last_mismatch_ms: self.last_mismatch_ms,
            needs_full: self.needs_full,
            blocks_per_checkpoint: self.blocks,
            disks: self.disks.iter().map(|(name, ledger)| ledger.status(name)).collect(),
            needs_full_disks: self.needs_full_disks,
        }
    }
}
