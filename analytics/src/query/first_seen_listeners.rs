use super::{MACHINE, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "first-seen-listeners",
    question: "Which sockets listened for the first time, in which checkpoint, and whose are they?",
    parameters: &[MACHINE],
    columns: &[
        Output { name: "protocol", doc: "of the socket" },
        Output { name: "local_address", doc: "where it listens" },
        Output { name: "local_port", doc: "on which port" },
        Output { name: "first_sequence", doc: "number of the first checkpoint with it" },
        Output { name: "first_checkpoint", doc: "name of that checkpoint" },
        Output { name: "pid", doc: "a process that had it open then" },
        Output { name: "comm", doc: "name of that process" },
        Output { name: "last_sequence", doc: "number of the last checkpoint with it" },
    ],
    sql: "\
-- A span is a socket in all checkpoints from _first to _last, or to the end of its series.
WITH listener AS (
    SELECT s.protocol, s.local_address, s.local_port, min(s._first) AS first, s.pid, s.comm,
           max(ifnull(s._last, (SELECT max(o.checkpoint) FROM observation o WHERE o.series = s._series))) AS last
    FROM span_socket s
    WHERE s._machine = (SELECT id FROM machine WHERE name = ?1) AND s.state = 'listen' AND s.local_port IS NOT NULL
    GROUP BY s.local_port, s.protocol, s.local_address)
SELECT l.protocol, l.local_address, l.local_port, a.sequence AS first_sequence, a.name AS first_checkpoint, l.pid,
       l.comm, z.sequence AS last_sequence
FROM listener l
JOIN checkpoint a ON a.id = l.first
JOIN checkpoint z ON z.id = l.last
ORDER BY first_sequence DESC, l.local_port, l.protocol, l.local_address
LIMIT 50",
};
