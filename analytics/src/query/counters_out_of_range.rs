use super::{BAD, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "counters-out-of-range",
    question: "Which of the kernel's own counters left the range they kept in good checkpoints?",
    parameters: &[BAD],
    columns: &[
        Output { name: "counter", doc: "name of the counter" },
        Output { name: "unit", doc: "`level` or `per second`" },
        Output { name: "value", doc: "its value" },
        Output { name: "low", doc: "least value in good checkpoints" },
        Output { name: "high", doc: "largest value in good checkpoints" },
        Output { name: "times_usual", doc: "ratio to the mean of good checkpoints" },
    ],
    sql: "\
WITH pair AS MATERIALIZED (
    SELECT c.checkpoint AS id, c.name, c.parent_checkpoint AS parent, c.verdict, (now.uptime_ns - then_.uptime_ns) / 1e9 AS seconds
    FROM v_checkpoint c
    JOIN fact_kernel now ON now.checkpoint = c.checkpoint
    JOIN fact_kernel then_ ON then_.checkpoint = c.parent_checkpoint
    WHERE c.machine = (SELECT machine FROM v_checkpoint WHERE name = ?1)
      AND (c.verdict = 'good' OR c.name = ?1)),
-- Read once, and then joined by an index.
counter AS MATERIALIZED (
    SELECT checkpoint, name, value FROM fact_counter
    WHERE checkpoint IN (SELECT id FROM pair UNION SELECT parent FROM pair)),
reading AS (
    SELECT p.name AS checkpoint, p.verdict, now.name AS counter,
           now.name IN ('load1', 'load5', 'load15', 'total_pages', 'tainted', 'workingset_nodes', 'poisoned_pages')
               OR (now.name GLOB 'nr_*' AND now.name NOT IN ('nr_dirtied', 'nr_written')) AS is_level,
           now.value, (now.value - then_.value) / p.seconds AS per_second
    FROM pair p
    CROSS JOIN counter now ON now.checkpoint = p.id
    CROSS JOIN counter then_ ON then_.checkpoint = p.parent AND then_.name = now.name
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
};
