-- Format 1 of the catalogue. Never edited once released: a later format is a step of its own. Drawn in docs/format.md.

CREATE TABLE setting (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE machine (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    identity TEXT NOT NULL,
    runtime TEXT NOT NULL DEFAULT '',
    timeline INTEGER REFERENCES timeline (id),
    checkpoint INTEGER REFERENCES checkpoint (id)
);

CREATE TABLE timeline (
    id INTEGER PRIMARY KEY,
    machine INTEGER NOT NULL REFERENCES machine (id),
    origin INTEGER REFERENCES checkpoint (id),
    created_at_ms INTEGER NOT NULL
);
CREATE INDEX timeline_by_machine ON timeline (machine);

CREATE TABLE checkpoint (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    machine INTEGER NOT NULL REFERENCES machine (id),
    timeline INTEGER NOT NULL REFERENCES timeline (id),
    parent INTEGER REFERENCES checkpoint (id),
    sequence INTEGER NOT NULL,
    label TEXT,
    kind TEXT NOT NULL,
    taken_at_ms INTEGER NOT NULL,
    pause_us INTEGER NOT NULL,
    durable_us INTEGER,
    dirty_pages INTEGER NOT NULL,
    changed_pages INTEGER NOT NULL,
    new_pages INTEGER NOT NULL,
    zero_pages INTEGER NOT NULL,
    stored_bytes INTEGER NOT NULL,
    keyframe_distance INTEGER NOT NULL,
    keyframe_rows INTEGER NOT NULL,
    changes_hash BLOB NOT NULL,
    UNIQUE (machine, sequence)
);
CREATE INDEX checkpoint_by_parent ON checkpoint (parent);
CREATE INDEX checkpoint_by_label ON checkpoint (label) WHERE label IS NOT NULL;

CREATE TABLE pack (
    id INTEGER PRIMARY KEY,
    committed_bytes INTEGER NOT NULL
);

CREATE TABLE frame (
    id INTEGER PRIMARY KEY,
    pack INTEGER NOT NULL REFERENCES pack (id),
    offset INTEGER NOT NULL,
    stored_bytes INTEGER NOT NULL,
    pages INTEGER NOT NULL
);

CREATE TABLE content (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,
    frame INTEGER NOT NULL,
    slot INTEGER NOT NULL
);

CREATE TABLE content_index (
    prefix INTEGER NOT NULL,
    content INTEGER NOT NULL,
    PRIMARY KEY (prefix, content)
) WITHOUT ROWID;

CREATE TABLE page_version (
    checkpoint INTEGER NOT NULL,
    gfn INTEGER NOT NULL,
    content INTEGER NOT NULL,
    PRIMARY KEY (checkpoint, gfn)
) WITHOUT ROWID;

CREATE TABLE keyframe (
    checkpoint INTEGER PRIMARY KEY REFERENCES checkpoint (id),
    hash BLOB NOT NULL,
    map BLOB NOT NULL
);

CREATE TABLE state (
    checkpoint INTEGER PRIMARY KEY REFERENCES checkpoint (id),
    vcpus TEXT NOT NULL,
    disks TEXT NOT NULL,
    hash BLOB NOT NULL
);

CREATE TABLE section (
    checkpoint INTEGER NOT NULL REFERENCES checkpoint (id),
    ordinal INTEGER NOT NULL,
    format TEXT NOT NULL,
    length_bytes INTEGER NOT NULL,
    contents BLOB NOT NULL,
    PRIMARY KEY (checkpoint, ordinal)
) WITHOUT ROWID;

CREATE TABLE operation (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    machine INTEGER NOT NULL REFERENCES machine (id),
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    before INTEGER REFERENCES checkpoint (id),
    before_timeline INTEGER REFERENCES timeline (id),
    after INTEGER REFERENCES checkpoint (id),
    after_timeline INTEGER REFERENCES timeline (id),
    undoes INTEGER REFERENCES operation (id),
    detail TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX operation_by_machine ON operation (machine);

CREATE TABLE verdict (
    checkpoint INTEGER PRIMARY KEY REFERENCES checkpoint (id),
    verdict TEXT NOT NULL,
    score REAL NOT NULL,
    p_value REAL,
    reasons TEXT NOT NULL
);

CREATE TABLE feature (
    checkpoint INTEGER NOT NULL,
    name TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (checkpoint, name)
) WITHOUT ROWID;

CREATE TABLE incident (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    machine INTEGER NOT NULL REFERENCES machine (id),
    first_bad INTEGER NOT NULL REFERENCES checkpoint (id),
    last_good INTEGER REFERENCES checkpoint (id),
    opened_at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    summary TEXT NOT NULL,
    detail TEXT NOT NULL,
    action TEXT
);
CREATE INDEX incident_by_machine ON incident (machine);

CREATE VIEW v_checkpoint AS
SELECT c.name, m.name AS machine, c.sequence, c.timeline, p.name AS parent, c.label, c.kind, c.taken_at_ms,
       strftime('%Y-%m-%d %H:%M:%f', c.taken_at_ms / 1000.0, 'unixepoch') AS taken_at_utc,
       coalesce(v.verdict, 'unknown') AS verdict, v.score, v.p_value,
       c.pause_us, c.durable_us, c.dirty_pages, c.changed_pages, c.new_pages, c.zero_pages, c.stored_bytes,
       c.id AS checkpoint
FROM checkpoint c
JOIN machine m ON m.id = c.machine
LEFT JOIN checkpoint p ON p.id = c.parent
LEFT JOIN verdict v ON v.checkpoint = c.id;

CREATE VIEW v_page_history AS
SELECT m.name AS machine, v.gfn, printf('0x%016x', v.gfn * 4096) AS address, c.name AS checkpoint_name, c.sequence,
       c.timeline, c.taken_at_ms,
       CASE v.content WHEN 0 THEN 'zero' WHEN 1 THEN 'removed' ELSE 'data' END AS state,
       v.content, c.id AS checkpoint
FROM checkpoint c
CROSS JOIN page_version v ON v.checkpoint = c.id
CROSS JOIN machine m ON m.id = c.machine;

CREATE VIEW v_operation AS
SELECT o.name, m.name AS machine, o.kind, o.status, o.at_ms, b.name AS before, o.before_timeline, a.name AS after,
       o.after_timeline, u.name AS undoes, o.detail, o.id AS operation
FROM operation o
JOIN machine m ON m.id = o.machine
LEFT JOIN checkpoint b ON b.id = o.before
LEFT JOIN checkpoint a ON a.id = o.after
LEFT JOIN operation u ON u.id = o.undoes;

CREATE VIEW v_timeline AS
SELECT t.id AS timeline, m.name AS machine, o.name AS origin, t.created_at_ms,
       (SELECT count(*) FROM checkpoint c WHERE c.machine = t.machine AND c.timeline = t.id) AS checkpoints,
       m.timeline IS t.id AS present
FROM timeline t
JOIN machine m ON m.id = t.machine
LEFT JOIN checkpoint o ON o.id = t.origin;

CREATE VIEW v_feature AS
SELECT m.name AS machine, c.name AS checkpoint_name, c.sequence, f.name, f.value, c.id AS checkpoint
FROM feature f
JOIN checkpoint c ON c.id = f.checkpoint
JOIN machine m ON m.id = c.machine;

CREATE VIEW v_incident AS
SELECT i.name, m.name AS machine, b.name AS first_bad, b.sequence AS first_bad_sequence, g.name AS last_good,
       i.opened_at_ms, i.kind, i.summary, i.action, i.detail
FROM incident i
JOIN machine m ON m.id = i.machine
JOIN checkpoint b ON b.id = i.first_bad
LEFT JOIN checkpoint g ON g.id = i.last_good;
