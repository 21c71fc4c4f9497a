//! Named queries to the snapshot database that users can run, read and adapt. One file each; [`QUERIES`] lists them.
//!
//! `docs/analytics.md` describes how to add one.

mod broken_invariants;
mod counters_out_of_range;
mod cpu_since;
mod features_out_of_range;
mod first_seen_executables;
mod first_seen_listeners;
mod gone_tasks;
mod log_since;
mod memory_growth;
mod moved_syscalls;
mod new_tasks;
mod seen;
mod verdicts;

/// A named query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedQuery {
    /// A short name: `cpu-since`.
    pub name: &'static str,
    /// The question that it answers.
    pub question: &'static str,
    /// The parameters `?1`, `?2`…, in their order.
    pub parameters: &'static [&'static str],
    /// The columns of the answer, in their order.
    pub columns: &'static [Output],
    /// One SELECT over the tables and views of the store.
    pub sql: &'static str,
}

/// A column of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name, with the unit last.
    pub name: &'static str,
    /// Its meaning.
    pub doc: &'static str,
}

const GOOD: &str = "name of the last good checkpoint";
const BAD: &str = "name of a bad checkpoint";
const MACHINE: &str = "name of the machine";

/// The registry of queries, for the investigation of an incident.
pub const QUERIES: &[NamedQuery] = &[
    cpu_since::QUERY,
    new_tasks::QUERY,
    gone_tasks::QUERY,
    broken_invariants::QUERY,
    features_out_of_range::QUERY,
    counters_out_of_range::QUERY,
    moved_syscalls::QUERY,
    log_since::QUERY,
    memory_growth::QUERY,
    verdicts::QUERY,
    first_seen_executables::QUERY,
    first_seen_listeners::QUERY,
    seen::QUERY,
];

/// The query of a name.
#[must_use]
pub fn named_query(name: &str) -> Option<&'static NamedQuery> {
    QUERIES.iter().find(|query| query.name == name)
}
