//! Questions to the snapshot database that people can run, read and change.

/// A question with its SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedQuery {
    /// A short name for the command line.
    pub name: &'static str,
    /// What it answers.
    pub question: &'static str,
    /// What `?1`, `?2`… represent, in their order.
    pub parameters: &'static [&'static str],
    /// One SELECT over the tables and views of the store.
    pub sql: &'static str,
}

const GOOD_AND_BAD: &[&str] = &["name of the last good checkpoint", "name of a bad checkpoint"];
const BAD: &[&str] = &["name of a bad checkpoint"];
const MACHINE: &[&str] = &["name of the machine"];

/// The questions that are asked after something went wrong.
pub const QUERIES: &[NamedQuery] = &[
    NamedQuery {
        name: "cpu-since",
        question: "Which task used most processor time since the last good checkpoint?",
        parameters: GOOD_AND_BAD,
        sql: "\
SELECT now.comm, now.pid, now.parent_comm AS parent, then_.pid IS NULL AS is_new,
       round((now.utime_ns + now.stime_ns - coalesce(then_.utime_ns + then_.stime_ns, 0)) / 1e9, 3) AS cpu_s,
       now.rss_pages - coalesce(then_.rss_pages, 0) AS rss_pages_grown
FROM checkpoint good
JOIN checkpoint bad ON bad.name = ?2
JOIN fact_task now ON now.checkpoint = bad.id
LEFT JOIN fact_task then_ ON then_.checkpoint = good.id AND then_.pid = now.pid
     AND then_.start_time_ns = now.start_time_ns
WHERE good.name = ?1
ORDER BY cpu_s DESC, now.pid
LIMIT 20",
    },
    NamedQuery {
        name: "new-tasks",
        question: "Which tasks are there now that the last good checkpoint had not, and who started them?",
        parameters: GOOD_AND_BAD,
        sql: "\
SELECT now.comm, count(*) AS tasks, group_concat(DISTINCT now.parent_comm) AS started_by,
       sum(now.rss_pages) AS rss_pages, min(now.pid) AS first_pid,
       round(min(now.start_time_ns) / 1e9, 3) AS first_start_s
FROM checkpoint good
JOIN checkpoint bad ON bad.name = ?2
JOIN fact_task now ON now.checkpoint = bad.id
WHERE good.name = ?1
  AND NOT EXISTS (SELECT 1 FROM fact_task t WHERE t.checkpoint = good.id AND t.pid = now.pid
                  AND t.start_time_ns = now.start_time_ns)
GROUP BY now.comm
ORDER BY tasks DESC, now.comm
LIMIT 20",
    },
    NamedQuery {
        name: "gone-tasks",
        question: "Which tasks of the last good checkpoint are gone?",
        parameters: GOOD_AND_BAD,
        sql: "\
SELECT then_.comm, then_.pid, then_.parent_comm AS parent, then_.kernel_thread
FROM checkpoint good
JOIN checkpoint bad ON bad.name = ?2
JOIN fact_task then_ ON then_.checkpoint = good.id
WHERE good.name = ?1
  AND NOT EXISTS (SELECT 1 FROM fact_task t WHERE t.checkpoint = bad.id AND t.pid = then_.pid
                  AND t.start_time_ns = then_.start_time_ns)
ORDER BY then_.kernel_thread, then_.pid
LIMIT 50",
    },
    NamedQuery {
        name: "broken-invariants",
        question: "Which invariants broke, which first, and for how long?",
        parameters: MACHINE,
        sql: "\
SELECT f.kind, f.object, min(c.sequence) AS first_sequence,
       c.name AS first_checkpoint, count(*) AS checkpoints, f.expected, f.found
FROM fact_integrity f
JOIN checkpoint c ON c.id = f.checkpoint
JOIN machine m ON m.id = c.machine
WHERE m.name = ?1
GROUP BY f.kind, f.object
ORDER BY first_sequence, f.kind, f.object",
    },
    NamedQuery {
        name: "features-out-of-range",
        question: "Which features left the range they kept in good checkpoints?",
        parameters: BAD,
        sql: "\
WITH usual AS (
    SELECT f.name, min(f.value) AS low, max(f.value) AS high, avg(f.value) AS mean
    FROM feature f
    JOIN verdict v ON v.checkpoint = f.checkpoint AND v.verdict = 'good'
    JOIN checkpoint c ON c.id = f.checkpoint
    WHERE c.machine = (SELECT machine FROM checkpoint WHERE name = ?1)
    GROUP BY f.name)
SELECT f.name AS feature, round(f.value, 4) AS value, round(u.low, 4) AS low, round(u.high, 4) AS high,
       round(max(f.value - u.high, u.low - f.value) / (u.high - u.low + 0.05 * abs(u.mean) + 0.01), 1) AS ranges_outside
FROM checkpoint c
JOIN feature f ON f.checkpoint = c.id
JOIN usual u ON u.name = f.name
WHERE c.name = ?1 AND (f.value > u.high OR f.value < u.low)
ORDER BY ranges_outside DESC
LIMIT 20",
    },
    NamedQuery {
        name: "counters-out-of-range",
        question: "Which of the kernel's own counters left the range they kept in good checkpoints?",
        parameters: BAD,
        sql: "\
WITH pair AS (
    SELECT c.id, c.name, c.parent, v.verdict, (now.uptime_ns - then_.uptime_ns) / 1e9 AS seconds
    FROM checkpoint c
    JOIN fact_kernel now ON now.checkpoint = c.id
    JOIN fact_kernel then_ ON then_.checkpoint = c.parent
    LEFT JOIN verdict v ON v.checkpoint = c.id
    WHERE c.machine = (SELECT machine FROM checkpoint WHERE name = ?1)
      AND (v.verdict = 'good' OR c.name = ?1)),
reading AS (
    SELECT p.name AS checkpoint, p.verdict, now.name AS counter,
           now.name IN ('processes', 'threads', 'running', 'uninterruptible', 'waiting_for_io', 'workingset_nodes')
               OR now.name GLOB '*_x100' OR (now.name GLOB 'nr_*' AND now.name NOT IN ('nr_dirtied', 'nr_written')) AS is_level,
           now.value, (now.value - then_.value) / p.seconds AS per_second
    FROM pair p
    CROSS JOIN fact_counter now ON now.checkpoint = p.id
    JOIN fact_counter then_ ON then_.checkpoint = p.parent AND then_.name = now.name
    WHERE p.seconds > 0.05),
rate AS (
    SELECT checkpoint, verdict, counter, iif(is_level, 'level', 'per second') AS unit,
           iif(is_level, value, per_second) AS value
    FROM reading),
usual AS (
    SELECT counter, min(value) AS low, max(value) AS high, avg(value) AS mean
    FROM rate WHERE verdict = 'good' GROUP BY counter)
SELECT r.counter, r.unit, round(r.value, 2) AS value, round(u.low, 2) AS low, round(u.high, 2) AS high,
       round(max((r.value + 1) / (u.mean + 1), (u.mean + 1) / (r.value + 1)), 1) AS times_usual
FROM rate r
JOIN usual u ON u.counter = r.counter
WHERE r.checkpoint = ?1 AND (r.value > u.high OR r.value < u.low)
ORDER BY times_usual DESC
LIMIT 20",
    },
    NamedQuery {
        name: "moved-syscalls",
        question: "Which system calls lead elsewhere than in the last good checkpoint?",
        parameters: GOOD_AND_BAD,
        sql: "\
SELECT now.via, now.number, then_.symbol AS led_to, then_.target AS at, now.symbol AS leads_to, now.target AS now_at,
       now.in_text
FROM checkpoint good
JOIN checkpoint bad ON bad.name = ?2
JOIN fact_syscall now ON now.checkpoint = bad.id
JOIN fact_syscall then_ ON then_.checkpoint = good.id AND then_.via = now.via AND then_.number = now.number
WHERE good.name = ?1 AND then_.target <> now.target
ORDER BY now.number",
    },
    NamedQuery {
        name: "log-since",
        question: "What did the guest's kernel log since the last good checkpoint?",
        parameters: GOOD_AND_BAD,
        sql: "\
SELECT l.sequence, round(l.time_ns / 1e9, 6) AS time_s, l.level, l.text
FROM checkpoint good
JOIN checkpoint bad ON bad.name = ?2
JOIN fact_log l ON l.checkpoint = bad.id
WHERE good.name = ?1
  AND l.sequence > (SELECT coalesce(max(sequence), -1) FROM fact_log WHERE checkpoint = good.id)
ORDER BY l.sequence
LIMIT 200",
    },
    NamedQuery {
        name: "memory-growth",
        question: "Whose memory grew most since the last good checkpoint?",
        parameters: GOOD_AND_BAD,
        sql: "\
WITH held AS (
    SELECT c.name AS checkpoint, t.comm, sum(t.rss_pages) AS pages
    FROM checkpoint c JOIN fact_task t ON t.checkpoint = c.id
    WHERE c.name IN (?1, ?2) AND t.pid = t.tgid
    GROUP BY c.name, t.comm)
SELECT now.comm, now.pages, coalesce(then_.pages, 0) AS pages_before, now.pages - coalesce(then_.pages, 0) AS grown
FROM held now LEFT JOIN held then_ ON then_.checkpoint = ?1 AND then_.comm = now.comm
WHERE now.checkpoint = ?2
ORDER BY grown DESC, now.comm
LIMIT 20",
    },
    NamedQuery {
        name: "verdicts",
        question: "How did each timeline fare?",
        parameters: MACHINE,
        sql: "\
SELECT v.timeline, t.origin, count(*) AS checkpoints, sum(v.verdict = 'good') AS good,
       sum(v.verdict = 'unknown') AS unknown, sum(v.verdict = 'suspect') AS suspect, sum(v.verdict = 'bad') AS bad,
       round(max(v.score), 2) AS highest_score, sum(v.stored_bytes) AS stored_bytes
FROM v_checkpoint v
LEFT JOIN v_timeline t ON t.timeline = v.timeline
WHERE v.machine = ?1
GROUP BY v.timeline
ORDER BY v.timeline",
    },
];
