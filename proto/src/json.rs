//! How enums and cells look in JSON.

use serde::{Serialize as _, Serializer};

use crate::v1::{Cell, RunState, Verdict};

/// `RUN_STATE_RUNNING` as `running`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn run_state<S: Serializer>(state: &i32, to: S) -> Result<S::Ok, S::Error> {
    word(RunState::try_from(*state).map_or("", |state| state.as_str_name()), "RUN_STATE_").serialize(to)
}

/// `VERDICT_BAD` as `bad`; not judged is `unknown`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn verdict<S: Serializer>(verdict: &i32, to: S) -> Result<S::Ok, S::Error> {
    word(Verdict::try_from(*verdict).map_or("", |verdict| verdict.as_str_name()), "VERDICT_").serialize(to)
}

/// A row as a plain array of numbers, texts and nulls.
pub(crate) fn cells<S: Serializer>(cells: &[Cell], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(cells.iter().map(|cell| &cell.value))
}

fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        None | Some("UNSPECIFIED") => "unknown".to_owned(),
        Some(word) => word.to_lowercase(),
    }
}
