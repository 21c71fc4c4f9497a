use retrovisor_guest::ClockPolicy;
use retrovisor_snapshot::{CheckpointId, CheckpointRecord};

/// How a machine came to its actor.
pub(crate) enum Arrival {
    /// Started, or attached for the first time.
    New,
    /// Attached again, after the daemon's restart or because it was unreachable. The checkpoint is where it must be taken to
    /// before it may run, if its memory is half written.
    Reattached { half_written: Option<CheckpointId> },
    /// A new process, waiting to be given the state of a checkpoint.
    Restored { target: CheckpointId, verify_image: bool, clock: ClockPolicy },
    /// A branch of another machine, whole and ready to run.
    Branched { first: Box<CheckpointRecord>, paused: bool },
}
