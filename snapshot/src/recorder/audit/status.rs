use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::ledger::Ledger;
use crate::clock::now_ms;

/// How much of a machine's memory is proven: compared with a checkpoint, or copied for one in its pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
}

/// What the recording thread and the storing thread know of the audit. The lock is not taken in a pause.
pub(in crate::recorder) type SharedAudit = Arc<Mutex<AuditState>>;

/// What is known so far.
pub(in crate::recorder) struct AuditState {
    pub(super) ledger: Ledger,
    /// A mismatch was found: checkpoints are doubtful until one has looked at every frame.
    pub(super) needs_full: bool,
    pages: u64,
    /// Positions of the walk that were compared.
    walked: u64,
    /// When this round of the walk began, and the one before.
    round_since_ms: i64,
    before_since_ms: Option<i64>,
    /// When the last audit of the whole memory began, and how many frames it compared.
    whole: Option<(i64, u64)>,
    mismatches: u64,
    last_mismatch_ms: Option<i64>,
}

impl AuditState {
    /// Nothing is proven yet; `newest` is the sequence number of the machine's newest checkpoint.
    pub(in crate::recorder) fn new(pages: u64, newest: u64) -> Self {
        Self {
            ledger: Ledger::new(pages, newest),
            needs_full: false,
            pages,
            walked: 0,
            round_since_ms: now_ms(),
            before_since_ms: None,
            whole: None,
            mismatches: 0,
            last_mismatch_ms: None,
        }
    }

    /// The memory was replaced by that of a checkpoint, in every frame.
    pub(in crate::recorder) fn reset(&mut self, newest: u64) {
        self.ledger.reset(newest);
        self.needs_full = false;
    }

    /// The walk was compared up to this position.
    pub(super) fn walked_to(&mut self, position: u64) {
        if position / self.pages > self.walked / self.pages {
            self.before_since_ms = Some(self.round_since_ms);
            self.round_since_ms = now_ms();
        }
        self.walked = position;
    }

    /// An audit of the whole memory that began then has compared this many frames.
    pub(super) fn audited(&mut self, since_ms: i64, compared: u64) {
        self.whole = Some((since_ms, compared));
    }

    /// This many frames were not what a checkpoint says. Returns whether this was not known of any frame before.
    pub(super) fn mismatched(&mut self, frames: u64) -> bool {
        self.mismatches += frames;
        self.last_mismatch_ms = Some(now_ms());
        !std::mem::replace(&mut self.needs_full, true)
    }

    /// What is known, for users.
    pub(in crate::recorder) fn status(&self, frames_per_checkpoint: u64) -> AuditStatus {
        let walk = match self.before_since_ms {
            // All frames that this round has not reached were reached in the one before.
            Some(since_ms) => (since_ms, self.pages),
            None => (self.round_since_ms, self.walked),
        };
        let whole = self.whole.filter(|whole| whole.1 >= walk.1);
        let (since_ms, proven_pages) = whole.unwrap_or(walk);
        AuditStatus {
            frames_per_checkpoint,
            pages: self.pages,
            proven_pages,
            since_ms,
            mismatches: self.mismatches,
            last_mismatch_ms: self.last_mismatch_ms,
            needs_full: self.needs_full,
        }
    }
}
