-- Format 2: checkpoints can be pinned, pruned and marked as damaged; disks are kept in the packs. Drawn in docs/format.md.

ALTER TABLE checkpoint ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;

-- Checkpoints of which something is lost for good: they are refused as targets. Found and written by a repair.
CREATE TABLE damage (
    checkpoint INTEGER NOT NULL REFERENCES checkpoint (id),
    what TEXT NOT NULL,
    found_at_ms INTEGER NOT NULL,
    PRIMARY KEY (checkpoint, what)
) WITHOUT ROWID;

-- Checkpoints that were pruned and that operations or incidents still name.
CREATE TABLE pruned (
    checkpoint INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    machine INTEGER NOT NULL REFERENCES machine (id),
    sequence INTEGER NOT NULL,
    taken_at_ms INTEGER NOT NULL,
    pruned_at_ms INTEGER NOT NULL
);

CREATE TABLE disk (
    id INTEGER PRIMARY KEY,
    machine INTEGER NOT NULL REFERENCES machine (id),
    name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    base TEXT NOT NULL
);
CREATE INDEX disk_by_machine ON disk (machine);

-- A disk at a checkpoint: what its list of changed blocks must hash to, and how far its full map is.
CREATE TABLE disk_version (
    checkpoint INTEGER NOT NULL REFERENCES checkpoint (id),
    disk INTEGER NOT NULL REFERENCES disk (id),
    changes_hash BLOB NOT NULL,
    keyframe_distance INTEGER NOT NULL,
    keyframe_rows INTEGER NOT NULL,
    PRIMARY KEY (checkpoint, disk)
) WITHOUT ROWID;

CREATE TABLE block_version (
    checkpoint INTEGER NOT NULL,
    disk INTEGER NOT NULL,
    block INTEGER NOT NULL,
    content INTEGER NOT NULL,
    PRIMARY KEY (checkpoint, disk, block)
) WITHOUT ROWID;

CREATE TABLE disk_keyframe (
    id INTEGER PRIMARY KEY,
    checkpoint INTEGER NOT NULL REFERENCES checkpoint (id),
    disk INTEGER NOT NULL REFERENCES disk (id),
    hash BLOB NOT NULL,
    map BLOB NOT NULL,
    UNIQUE (checkpoint, disk)
);

-- Operations and incidents outlive the checkpoints that they name: they no longer refer to them by constraint.
DROP VIEW v_operation;
DROP VIEW v_incident;
DROP VIEW v_checkpoint;

CREATE TABLE operation_2 (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    machine INTEGER NOT NULL REFERENCES machine (id),
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    before INTEGER,
    before_timeline INTEGER,
    after INTEGER,
    after_timeline INTEGER,
    undoes INTEGER,
    detail TEXT NOT NULL DEFAULT '{}'
);
INSERT INTO operation_2 SELECT id, name, machine, kind, status, at_ms, before, before_timeline, after, after_timeline,
    undoes, detail FROM operation ORDER BY id;
DROP TABLE operation;
ALTER TABLE operation_2 RENAME TO operation;
CREATE INDEX operation_by_machine ON operation (machine);

CREATE TABLE incident_2 (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    machine INTEGER NOT NULL REFERENCES machine (id),
    first_bad INTEGER NOT NULL,
    last_good INTEGER,
    opened_at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    summary TEXT NOT NULL,
    detail TEXT NOT NULL,
    action TEXT
);
INSERT INTO incident_2 SELECT id, name, machine, first_bad, last_good, opened_at_ms, kind, summary, detail, action
    FROM incident ORDER BY id;
DROP TABLE incident;
ALTER TABLE incident_2 RENAME TO incident;
CREATE INDEX incident_by_machine ON incident (machine);

CREATE VIEW v_checkpoint AS
SELECT c.name, m.name AS machine, c.sequence, c.timeline, p.name AS parent, c.label, c.pinned, c.kind, c.taken_at_ms,
       strftime('%Y-%m-%d %H:%M:%f', c.taken_at_ms / 1000.0, 'unixepoch') AS taken_at_utc,
       coalesce(v.verdict, 'unknown') AS verdict, v.score, v.p_value,
       c.pause_us, c.durable_us, c.dirty_pages, c.changed_pages, c.new_pages, c.zero_pages, c.stored_bytes,
       (SELECT group_concat(d.what, '; ') FROM damage d WHERE d.checkpoint = c.id) AS damage,
       c.id AS checkpoint
FROM checkpoint c
JOIN machine m ON m.id = c.machine
LEFT JOIN checkpoint p ON p.id = c.parent
LEFT JOIN verdict v ON v.checkpoint = c.id;

CREATE VIEW v_operation AS
SELECT o.name, m.name AS machine, o.kind, o.status, o.at_ms, coalesce(b.name, bp.name) AS before, o.before_timeline,
       coalesce(a.name, ap.name) AS after, o.after_timeline, u.name AS undoes, o.detail, o.id AS operation
FROM operation o
JOIN machine m ON m.id = o.machine
LEFT JOIN checkpoint b ON b.id = o.before
LEFT JOIN pruned bp ON bp.checkpoint = o.before
LEFT JOIN checkpoint a ON a.id = o.after
LEFT JOIN pruned ap ON ap.checkpoint = o.after
LEFT JOIN operation u ON u.id = o.undoes;

CREATE VIEW v_incident AS
SELECT i.name, m.name AS machine, coalesce(b.name, bp.name) AS first_bad,
       coalesce(b.sequence, bp.sequence) AS first_bad_sequence, coalesce(g.name, gp.name) AS last_good,
       i.opened_at_ms, i.kind, i.summary, i.action, i.detail
FROM incident i
JOIN machine m ON m.id = i.machine
LEFT JOIN checkpoint b ON b.id = i.first_bad
LEFT JOIN pruned bp ON bp.checkpoint = i.first_bad
LEFT JOIN checkpoint g ON g.id = i.last_good
LEFT JOIN pruned gp ON gp.checkpoint = i.last_good;

CREATE VIEW v_disk AS
SELECT d.name, m.name AS machine, d.size_bytes, d.base, d.id AS disk
FROM disk d
JOIN machine m ON m.id = d.machine;

CREATE VIEW v_block_history AS
SELECT m.name AS machine, d.name AS disk_name, v.block, c.name AS checkpoint_name, c.sequence, c.timeline,
       c.taken_at_ms, CASE v.content WHEN 0 THEN 'zero' WHEN 1 THEN 'base' ELSE 'data' END AS state,
       v.content, v.disk, c.id AS checkpoint
FROM checkpoint c
CROSS JOIN block_version v ON v.checkpoint = c.id
CROSS JOIN disk d ON d.id = v.disk
CROSS JOIN machine m ON m.id = c.machine;
