use retrovisor_guest::GuestEvent;
use retrovisor_snapshot::{CheckpointRecord, IncidentRecord, now_ms};
use tokio::sync::broadcast;

use crate::lifecycle::Lifecycle;
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
    /// The machine's state changed without a command: its new state, and why.
    State(Lifecycle, String),
    /// The guest or the host reported something.
    Guest(GuestEvent),
    /// Something failed: in words.
    Error(String),
}

/// Sends an event to those who watch; there may be nobody.
pub(crate) fn emit(events: &broadcast::Sender<Event>, machine: &str, kind: EventKind) {
    let _ = events.send(Event { machine: machine.to_owned(), at_ms: now_ms(), kind });
}
