//! How enums and cells look in JSON.

use serde::{Serialize as _, Serializer};

use crate::v1::{Cell, GuestEventKind, MachineState, RollbackKind, Verdict};

/// `MACHINE_STATE_POWERED_OFF` as `powered off`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn machine_state<S: Serializer>(state: &i32, to: S) -> Result<S::Ok, S::Error> {
    word(MachineState::try_from(*state).map_or("", |state| state.as_str_name()), "MACHINE_STATE_")
        .serialize(to)
}

/// `GUEST_EVENT_KIND_POWERED_OFF` as `powered off`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn guest_event_kind<S: Serializer>(kind: &i32, to: S) -> Result<S::Ok, S::Error> {
    word(GuestEventKind::try_from(*kind).map_or("", |kind| kind.as_str_name()), "GUEST_EVENT_KIND_")
        .serialize(to)
}

/// `ROLLBACK_KIND_UNDO` as `undo`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn rollback_kind<S: Serializer>(kind: &i32, to: S) -> Result<S::Ok, S::Error> {
    word(RollbackKind::try_from(*kind).map_or("", |kind| kind.as_str_name()), "ROLLBACK_KIND_").serialize(to)
}

/// `VERDICT_BAD` as `bad`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn verdict<S: Serializer>(verdict: &i32, to: S) -> Result<S::Ok, S::Error> {
    word(Verdict::try_from(*verdict).map_or("", |verdict| verdict.as_str_name()), "VERDICT_").serialize(to)
}

/// A row as a plain array of numbers, texts and nulls.
pub(crate) fn cells<S: Serializer>(cells: &[Cell], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(cells.iter().map(|cell| &cell.value))
}

/// The name without its prefix, in lower case. What this version does not know is `unknown`.
fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        None | Some("UNSPECIFIED") => "unknown".to_owned(),
        Some(word) => word.to_lowercase().replace('_', " "),
    }
}
