use std::time::Instant;

use super::capture::Draft;
use super::report::{CheckpointTiming, RollbackRequest};
use crate::catalogue::{Move, OperationKind};
use crate::id::{CheckpointId, OperationId, TimelineId};

/// Where to go, and how it is to be recorded.
pub(super) struct Journey<'a> {
    pub(super) target: CheckpointId,
    pub(super) kind: OperationKind,
    pub(super) undoes: Option<OperationId>,
    /// The timeline to go on in; none for a new one.
    pub(super) timeline: Option<TimelineId>,
    pub(super) request: &'a RollbackRequest,
}

/// A journey half way: the guest stands still, and what is to be its past is copied.
pub(super) struct Leaving {
    pub(super) draft: Draft,
    pub(super) to: Move,
    pub(super) was_running: bool,
    /// From before it was stopped.
    pub(super) start: Instant,
    pub(super) took: CheckpointTiming,
}
