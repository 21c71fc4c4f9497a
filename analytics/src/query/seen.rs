use super::{MACHINE, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "seen",
    question: "Where was an executable, a local port, a remote address, a symbol, a module… first and last seen?",
    parameters: &[MACHINE, "the executable's path, the port, …"],
    columns: &[
        Output { name: "fact", doc: "kind of fact that has it" },
        Output { name: "field", doc: "column that has it" },
        Output { name: "first_sequence", doc: "number of the first checkpoint with it" },
        Output { name: "first_checkpoint", doc: "name of that checkpoint" },
        Output { name: "first_taken_at_ms", doc: "when that was taken, since 1970" },
        Output { name: "last_sequence", doc: "number of the last checkpoint with it" },
        Output { name: "last_checkpoint", doc: "name of that checkpoint" },
        Output { name: "last_taken_at_ms", doc: "when that was taken, since 1970" },
    ],
    sql: "\
SELECT fact, field, first_sequence, first_checkpoint_name AS first_checkpoint, first_taken_at_ms,
       last_sequence, last_checkpoint_name AS last_checkpoint, last_taken_at_ms
FROM v_seen
WHERE machine = ?1
  -- Ports are numbers.
  AND value IN (?2, CASE WHEN ?2 NOT GLOB '*[^0-9]*' THEN CAST(?2 AS INTEGER) END)
ORDER BY first_sequence, fact, field",
};
