use super::{BAD, GOOD, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "memory-growth",
    question: "Whose memory grew most since the last good checkpoint?",
    parameters: &[GOOD, BAD],
    columns: &[
        Output { name: "comm", doc: "name of the processes" },
        Output { name: "pages", doc: "resident memory now" },
        Output { name: "pages_before", doc: "resident memory in the good checkpoint" },
        Output { name: "grown", doc: "the difference" },
    ],
    sql: "\
WITH held AS (
    SELECT c.name AS checkpoint, t.comm, sum(t.rss_pages) AS pages
    FROM v_checkpoint c JOIN fact_task t ON t.checkpoint = c.checkpoint
    WHERE c.name IN (?1, ?2) AND t.pid = t.tgid
    GROUP BY c.name, t.comm)
SELECT now.comm, now.pages, coalesce(then_.pages, 0) AS pages_before, now.pages - coalesce(then_.pages, 0) AS grown
FROM held now LEFT JOIN held then_ ON then_.checkpoint = ?1 AND then_.comm = now.comm
WHERE now.checkpoint = ?2
ORDER BY grown DESC, now.comm
LIMIT 20",
};
