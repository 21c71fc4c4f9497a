use retrovisor_snapshot::{CheckpointRecord, IncidentRecord};

use super::command::Journey;

/// Something that happened to a machine.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) machine: String,
    /// Host time, milliseconds since 1970.
    pub(crate) at_ms: i64,
    pub(crate) happening: Happening,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// A checkpoint is durable and judged; why it was judged so, strongest first.
    Checkpoint(Box<CheckpointRecord>, Vec<String>),
    /// An incident was opened.
    Incident(Box<IncidentRecord>),
    /// The machine went to another checkpoint.
    Move(Box<Journey>),
    /// A fault was injected.
    Injected(String),
    /// A checkpoint failed, or the machine is gone.
    Trouble(String),
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
