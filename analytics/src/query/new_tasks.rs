use super::{BAD, GOOD, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "new-tasks",
    question: "Which tasks are there now that the last good checkpoint had not, and who started them?",
    parameters: &[GOOD, BAD],
    columns: &[
        Output { name: "comm", doc: "name of the threads" },
        Output { name: "tasks", doc: "how many are new" },
        Output { name: "started_by", doc: "names of their parents" },
        Output { name: "rss_pages", doc: "their resident memory" },
        Output { name: "first_pid", doc: "lowest thread id" },
        Output { name: "first_start_s", doc: "uptime when the first started" },
    ],
    sql: "\
SELECT now.comm, count(*) AS tasks, group_concat(DISTINCT now.parent_comm) AS started_by,
       sum(now.rss_pages) AS rss_pages, min(now.pid) AS first_pid,
       round(min(now.start_time_ns) / 1e9, 3) AS first_start_s
FROM v_checkpoint good
JOIN v_checkpoint bad ON bad.name = ?2
JOIN fact_task now ON now.checkpoint = bad.checkpoint
WHERE good.name = ?1
  AND NOT EXISTS (SELECT 1 FROM fact_task t WHERE t.checkpoint = good.checkpoint AND t.pid = now.pid
                  AND t.start_time_ns = now.start_time_ns)
GROUP BY now.comm
ORDER BY tasks DESC, now.comm
LIMIT 20",
};
