-- Format 3: what users want of a machine, doubtful checkpoints, events, and which process a rollback left half written.
-- Described in docs/format.md.

-- What the user wants, whatever the machine does now: running, paused or stopped.
ALTER TABLE machine ADD COLUMN desired_state TEXT NOT NULL DEFAULT 'running';

-- 1: it is in doubt whether the checkpoint is exactly what the guest was. Never the target of an automatic rollback.
ALTER TABLE checkpoint ADD COLUMN doubtful INTEGER NOT NULL DEFAULT 0;

-- The process whose memory the operation may have left half written: its identity, empty when that is not known.
-- Null when the memory is whole.
ALTER TABLE operation ADD COLUMN half_written TEXT;
UPDATE operation SET half_written = '' WHERE status = 'started' AND kind IN ('rollback', 'undo', 'redo', 'restore');

CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    machine INTEGER NOT NULL REFERENCES machine (id),
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    severity TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX event_by_machine ON event (machine, id);

DROP VIEW v_checkpoint;
CREATE VIEW v_checkpoint AS
SELECT c.name, m.name AS machine, c.sequence, c.timeline, p.name AS parent, c.label, c.pinned, c.doubtful, c.kind,
       c.taken_at_ms, strftime('%Y-%m-%d %H:%M:%f', c.taken_at_ms / 1000.0, 'unixepoch') AS taken_at_utc,
       coalesce(v.verdict, 'unknown') AS verdict, v.score, v.p_value,
       c.pause_us, c.durable_us, c.dirty_pages, c.changed_pages, c.new_pages, c.zero_pages, c.stored_bytes,
       (SELECT group_concat(d.what, '; ') FROM damage d WHERE d.checkpoint = c.id) AS damage,
       c.id AS checkpoint, c.parent AS parent_checkpoint
FROM checkpoint c
JOIN machine m ON m.id = c.machine
LEFT JOIN checkpoint p ON p.id = c.parent
LEFT JOIN verdict v ON v.checkpoint = c.id;

DROP VIEW v_operation;
CREATE VIEW v_operation AS
SELECT o.name, m.name AS machine, o.kind, o.status, o.at_ms, coalesce(b.name, bp.name) AS before, o.before_timeline,
       coalesce(a.name, ap.name) AS after, o.after_timeline, u.name AS undoes, o.half_written, o.detail,
       o.id AS operation
FROM operation o
JOIN machine m ON m.id = o.machine
LEFT JOIN checkpoint b ON b.id = o.before
LEFT JOIN pruned bp ON bp.checkpoint = o.before
LEFT JOIN checkpoint a ON a.id = o.after
LEFT JOIN pruned ap ON ap.checkpoint = o.after
LEFT JOIN operation u ON u.id = o.undoes;

DROP VIEW v_timeline;
CREATE VIEW v_timeline AS
SELECT t.id AS timeline, m.name AS machine, o.name AS origin, t.created_at_ms,
       (SELECT count(*) FROM checkpoint c WHERE c.machine = t.machine AND c.timeline = t.id) AS checkpoints,
       m.timeline IS t.id AS current
FROM timeline t
JOIN machine m ON m.id = t.machine
LEFT JOIN checkpoint o ON o.id = t.origin;

CREATE VIEW v_event AS
SELECT e.id AS event, m.name AS machine, e.at_ms, e.kind, e.severity, e.detail
FROM event e
JOIN machine m ON m.id = e.machine;
