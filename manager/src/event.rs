use retrovisor_guest::GuestEvent;
use retrovisor_snapshot::{CheckpointRecord, EventSeverity, IncidentRecord, MachineId, Store, now_ms};
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

/// Keeps an event in the store, if the history of the machine does not have it otherwise.
pub(crate) fn keep(store: &Store, machine: MachineId, kind: &EventKind) {
    let (word, severity, detail) = match kind {
        EventKind::Checkpoint(..)
        | EventKind::Incident(_)
        | EventKind::Rollback(_)
        | EventKind::Injected(_) => return,
        EventKind::State(state, reason) => {
            let severity = match state {
                Lifecycle::Starting | Lifecycle::Running | Lifecycle::Detached => EventSeverity::Info,
                Lifecycle::Paused(_) | Lifecycle::PoweredOff | Lifecycle::Gone => EventSeverity::Warning,
                Lifecycle::Panicked | Lifecycle::Unreachable | Lifecycle::Failed => EventSeverity::Error,
            };
            ("state", severity, serde_json::json!({ "state": state.to_string(), "reason": reason }))
        }
        EventKind::Guest(event) => {
            ("guest", EventSeverity::Warning, serde_json::to_value(event).unwrap_or_default())
        }
        EventKind::Error(what) => ("error", EventSeverity::Error, serde_json::json!({ "error": what })),
    };
    if let Err(error) = store.catalogue().add_event(machine, word, severity, &detail) {
        tracing::warn!(%error, "an event is not kept");
    }
}

/// Sends an event to those who watch; there may be nobody.
pub(crate) fn emit(events: &broadcast::Sender<Event>, machine: &str, kind: EventKind) {
    let _ = events.send(Event { machine: machine.to_owned(), at_ms: now_ms(), kind });
}
