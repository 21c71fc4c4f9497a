use retrovisor_snapshot::{CheckpointRecord, IncidentRecord};

use crate::rollback::Rollback;

/// Something that happened to a machine.
#[derive(Clone, Debug)]
pub struct Event {
    /// The machine's name.
    pub machine: String,
    /// Host time, milliseconds since 1970.
    pub at_ms: i64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// A checkpoint is durable and evaluated; the reasons of its verdict, strongest first.
    Checkpoint(Box<CheckpointRecord>, Vec<String>),
    /// An incident was opened.
    Incident(Box<IncidentRecord>),
    /// The machine went to another checkpoint.
    Rollback(Box<Rollback>),
    /// A fault was injected.
    Injected(String),
    /// A checkpoint failed, or the machine is gone.
    Error(String),
}
