use super::{MACHINE, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "first-seen-executables",
    question: "Which executables ran for the first time, in which checkpoint, and who started them?",
    parameters: &[MACHINE],
    columns: &[
        Output { name: "executable", doc: "path of what runs" },
        Output { name: "first_sequence", doc: "number of the first checkpoint with it" },
        Output { name: "first_checkpoint", doc: "name of that checkpoint" },
        Output { name: "pid", doc: "a process that ran it then" },
        Output { name: "comm", doc: "name of that process" },
        Output { name: "started_by", doc: "name of its parent" },
        Output { name: "uid", doc: "user it ran as" },
        Output { name: "command_line", doc: "its command line" },
        Output { name: "checkpoints", doc: "in how many checkpoints it runs" },
    ],
    sql: "\
SELECT t.executable, min(c.sequence) AS first_sequence, c.name AS first_checkpoint, t.pid, t.comm,
       t.parent_comm AS started_by, t.uid, t.command_line, count(DISTINCT c.checkpoint) AS checkpoints
FROM fact_task t
JOIN v_checkpoint c ON c.checkpoint = t.checkpoint
WHERE c.machine = ?1 AND t.executable IS NOT NULL
GROUP BY t.executable
ORDER BY first_sequence DESC, t.executable
LIMIT 50",
};
