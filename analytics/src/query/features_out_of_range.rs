use super::{BAD, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "features-out-of-range",
    question: "Which features left the range they kept in good checkpoints?",
    parameters: &[BAD],
    columns: &[
        Output { name: "feature", doc: "name of the feature" },
        Output { name: "value", doc: "its value" },
        Output { name: "low", doc: "least value in good checkpoints" },
        Output { name: "high", doc: "largest value in good checkpoints" },
        Output { name: "ranges_outside", doc: "distance from the range, in ranges" },
    ],
    sql: "\
WITH usual AS (
    SELECT f.name, min(f.value) AS low, max(f.value) AS high, avg(f.value) AS mean
    FROM v_feature f
    JOIN v_checkpoint c ON c.checkpoint = f.checkpoint
    WHERE c.verdict = 'good' AND c.machine = (SELECT machine FROM v_checkpoint WHERE name = ?1)
    GROUP BY f.name)
SELECT f.name AS feature, round(f.value, 4) AS value, round(u.low, 4) AS low, round(u.high, 4) AS high,
       round(max(f.value - u.high, u.low - f.value) / (u.high - u.low + 0.05 * abs(u.mean) + 0.01), 1) AS ranges_outside
FROM v_checkpoint c
JOIN v_feature f ON f.checkpoint = c.checkpoint
JOIN usual u ON u.name = f.name
WHERE c.name = ?1 AND (f.value > u.high OR f.value < u.low)
ORDER BY ranges_outside DESC
LIMIT 20",
};
