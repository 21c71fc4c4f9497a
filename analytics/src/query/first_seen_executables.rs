use super::{MACHINE, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "first-seen-executables",
    question: "Which executables ran for the first time, in which checkpoint, and who started them?",
    parameters: &[MACHINE],
    columns: &[
        Output { name: "executable", doc: "path of what runs" },
        Output { name: "first_sequence", doc: "number of the first checkpoint with it" },
        Output { name: "first_checkpoint", doc: "name of that checkpoint" },
        Output { name: "pid", doc: "the lowest process id that ran it then" },
        Output { name: "comm", doc: "name of that process" },
        Output { name: "started_by", doc: "name of its parent" },
        Output { name: "uid", doc: "user it ran as" },
        Output { name: "command_line", doc: "its command line" },
        Output { name: "last_sequence", doc: "number of the last checkpoint with it" },
    ],
    sql: "\
WITH newest AS MATERIALIZED (
    SELECT value, first_checkpoint, first_checkpoint_name, first_sequence, last_sequence
    FROM v_seen WHERE machine = ?1 AND fact = 'fact_task' AND field = 'executable'
    ORDER BY first_sequence DESC, value
    LIMIT 50)
SELECT n.value AS executable, n.first_sequence, n.first_checkpoint_name AS first_checkpoint, min(t.pid) AS pid, t.comm,
       t.parent_comm AS started_by, t.uid, t.command_line, n.last_sequence
FROM newest n
CROSS JOIN fact_task t ON t.checkpoint = n.first_checkpoint AND t.executable = n.value
GROUP BY n.value
ORDER BY n.first_sequence DESC, n.value",
};
