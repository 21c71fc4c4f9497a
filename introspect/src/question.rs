/// A question about one checkpoint, answered by tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its name: `tasks`.
    pub name: &'static str,
    /// One line: what the answer shows.
    pub doc: &'static str,
    /// Queries whose results are the answer's tables. Empty when the answer is computed from the checkpoint's memory.
    pub selects: &'static [Select],
}

/// One table of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Select {
    /// The title of the table.
    pub title: &'static str,
    /// The table of facts that is read. It does not exist until a checkpoint has facts of the kind.
    pub table: &'static str,
    /// One SELECT; `?1` is the checkpoint.
    pub sql: &'static str,
}
