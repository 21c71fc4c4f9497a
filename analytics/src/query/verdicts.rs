use super::{MACHINE, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "verdicts",
    question: "How did each timeline fare?",
    parameters: &[MACHINE],
    columns: &[
        Output { name: "timeline", doc: "number of the timeline" },
        Output { name: "origin", doc: "checkpoint it began from" },
        Output { name: "checkpoints", doc: "how many it has" },
        Output { name: "good", doc: "of them good" },
        Output { name: "unknown", doc: "of them unknown" },
        Output { name: "suspect", doc: "of them suspect" },
        Output { name: "bad", doc: "of them bad" },
        Output { name: "highest_score", doc: "largest score" },
        Output { name: "stored_bytes", doc: "bytes they added to the store" },
    ],
    sql: "\
SELECT v.timeline, t.origin, count(*) AS checkpoints, sum(v.verdict = 'good') AS good,
       sum(v.verdict = 'unknown') AS unknown, sum(v.verdict = 'suspect') AS suspect, sum(v.verdict = 'bad') AS bad,
       round(max(v.score), 2) AS highest_score, sum(v.stored_bytes) AS stored_bytes
FROM v_checkpoint v
LEFT JOIN v_timeline t ON t.timeline = v.timeline
WHERE v.machine = ?1
GROUP BY v.timeline
ORDER BY v.timeline",
};
