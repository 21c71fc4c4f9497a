use super::{MACHINE, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "broken-invariants",
    question: "Which invariants broke, which first, and for how long?",
    parameters: &[MACHINE],
    columns: &[
        Output { name: "kind", doc: "which invariant" },
        Output { name: "object", doc: "what it is about" },
        Output { name: "first_sequence", doc: "number of the first checkpoint with it" },
        Output { name: "first_checkpoint", doc: "name of that checkpoint" },
        Output { name: "checkpoints", doc: "in how many it is violated" },
        Output { name: "expected", doc: "what must be there" },
        Output { name: "found", doc: "what is there" },
    ],
    sql: "\
SELECT f.kind, f.object, min(c.sequence) AS first_sequence,
       c.name AS first_checkpoint, count(*) AS checkpoints, f.expected, f.found
FROM fact_integrity f
JOIN v_checkpoint c ON c.checkpoint = f.checkpoint
WHERE c.machine = ?1
GROUP BY f.kind, f.object
ORDER BY first_sequence, f.kind, f.object",
};
