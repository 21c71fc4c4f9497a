use super::{BAD, GOOD, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "cpu-since",
    question: "Which task used most processor time since the last good checkpoint?",
    parameters: &[GOOD, BAD],
    columns: &[
        Output { name: "comm", doc: "name of the thread" },
        Output { name: "pid", doc: "thread id" },
        Output { name: "parent", doc: "name of its parent" },
        Output { name: "is_new", doc: "1 where the good checkpoint had it not" },
        Output { name: "cpu_s", doc: "processor time used in between" },
        Output { name: "rss_pages_grown", doc: "growth of resident memory" },
    ],
    sql: "\
WITH then_ AS MATERIALIZED (
    SELECT pid, start_time_ns, utime_ns, stime_ns, rss_pages FROM fact_task
    WHERE checkpoint = (SELECT checkpoint FROM v_checkpoint WHERE name = ?1))
SELECT now.comm, now.pid, now.parent_comm AS parent, then_.pid IS NULL AS is_new,
       round((now.utime_ns + now.stime_ns - coalesce(then_.utime_ns + then_.stime_ns, 0)) / 1e9, 3) AS cpu_s,
       now.rss_pages - coalesce(then_.rss_pages, 0) AS rss_pages_grown
FROM v_checkpoint bad
JOIN fact_task now ON now.checkpoint = bad.checkpoint
LEFT JOIN then_ ON then_.pid = now.pid AND then_.start_time_ns = now.start_time_ns
WHERE bad.name = ?2
ORDER BY cpu_s DESC, now.pid
LIMIT 20",
};
