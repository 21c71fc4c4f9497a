use super::{BAD, GOOD, NamedQuery, Output};

pub(super) const QUERY: NamedQuery = NamedQuery {
    name: "moved-syscalls",
    question: "Which system calls lead elsewhere than in the last good checkpoint?",
    parameters: &[GOOD, BAD],
    columns: &[
        Output { name: "via", doc: "table or dispatch function" },
        Output { name: "number", doc: "number of the call" },
        Output { name: "led_to", doc: "symbol in the good checkpoint" },
        Output { name: "at", doc: "address in the good checkpoint" },
        Output { name: "leads_to", doc: "symbol in the bad checkpoint; null outside all symbols" },
        Output { name: "now_at", doc: "address in the bad checkpoint" },
        Output { name: "in_text", doc: "1 where that is in the kernel's code" },
    ],
    sql: "\
WITH RECURSIVE
-- Only the first checkpoint of a boot has the whole table; later ones have the calls that differ from it.
ancestor(side, id, depth) AS (
    SELECT 'good', checkpoint, 0 FROM v_checkpoint WHERE name = ?1
    UNION ALL SELECT 'bad', checkpoint, 0 FROM v_checkpoint WHERE name = ?2
    UNION ALL SELECT a.side, c.parent_checkpoint, a.depth + 1
    FROM ancestor a JOIN v_checkpoint c ON c.checkpoint = a.id WHERE c.parent_checkpoint IS NOT NULL),
whole(side, id) AS (
    SELECT side, id FROM (
        SELECT a.side, a.id, row_number() OVER (PARTITION BY a.side ORDER BY a.depth) AS nearest FROM ancestor a
        WHERE (SELECT count(*) FROM fact_syscall f WHERE f.checkpoint = a.id) > 100)
    WHERE nearest = 1),
call(side, via, number, target, symbol, in_text, own) AS (
    SELECT a.side, f.via, f.number, f.target, f.symbol, f.in_text, 1
    FROM ancestor a JOIN fact_syscall f ON f.checkpoint = a.id WHERE a.depth = 0
    UNION ALL SELECT w.side, f.via, f.number, f.target, f.symbol, f.in_text, 0
    FROM whole w JOIN fact_syscall f ON f.checkpoint = w.id),
leads AS (
    SELECT side, via, number, target, symbol, in_text, max(own) FROM call GROUP BY side, via, number)
SELECT now.via, now.number, then_.symbol AS led_to, then_.target AS at, now.symbol AS leads_to, now.target AS now_at,
       now.in_text
FROM leads now
JOIN leads then_ ON then_.side = 'good' AND then_.via = now.via AND then_.number = now.number
WHERE now.side = 'bad' AND then_.target <> now.target
  -- After a reboot all addresses differ: then the symbols are compared.
  AND (then_.symbol IS NOT now.symbol OR now.symbol IS NULL)
ORDER BY now.number",
};
