use super::{BAD, GOOD, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "log-since",
    question: "What did the guest's kernel log since the last good checkpoint?",
    parameters: &[GOOD, BAD],
    columns: &[
        Output { name: "sequence", doc: "number of the record" },
        Output { name: "time_s", doc: "time since boot" },
        Output { name: "level", doc: "severity, 0 to 7" },
        Output { name: "text", doc: "the message" },
    ],
    sql: "\
WITH RECURSIVE
-- A checkpoint has the lines that its predecessors had not.
later(id) AS (
    SELECT checkpoint FROM v_checkpoint WHERE name = ?2
    UNION SELECT c.parent_checkpoint FROM later JOIN v_checkpoint c ON c.checkpoint = later.id
    WHERE c.parent_checkpoint IS NOT NULL),
earlier(id) AS (
    SELECT checkpoint FROM v_checkpoint WHERE name = ?1
    UNION SELECT c.parent_checkpoint FROM earlier JOIN v_checkpoint c ON c.checkpoint = earlier.id
    WHERE c.parent_checkpoint IS NOT NULL)
SELECT sequence, round(time_ns / 1e9, 6) AS time_s, level, text
FROM fact_log WHERE checkpoint IN (SELECT id FROM later EXCEPT SELECT id FROM earlier)
EXCEPT
SELECT sequence, round(time_ns / 1e9, 6), level, text FROM fact_log WHERE checkpoint IN (SELECT id FROM earlier)
ORDER BY sequence
LIMIT 200",
};
