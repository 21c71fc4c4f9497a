use super::{BAD, GOOD, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "gone-tasks",
    question: "Which tasks of the last good checkpoint are gone?",
    parameters: &[GOOD, BAD],
    columns: &[
        Output { name: "comm", doc: "name of the thread" },
        Output { name: "pid", doc: "thread id" },
        Output { name: "parent", doc: "name of its parent" },
        Output { name: "kernel_thread", doc: "1 for a thread of the kernel" },
    ],
    sql: "\
SELECT then_.comm, then_.pid, then_.parent_comm AS parent, then_.kernel_thread
FROM v_checkpoint good
JOIN v_checkpoint bad ON bad.name = ?2
JOIN fact_task then_ ON then_.checkpoint = good.checkpoint
WHERE good.name = ?1
  AND NOT EXISTS (SELECT 1 FROM fact_task t WHERE t.checkpoint = bad.checkpoint AND t.pid = then_.pid
                  AND t.start_time_ns = then_.start_time_ns)
ORDER BY then_.kernel_thread, then_.pid
LIMIT 50",
};
