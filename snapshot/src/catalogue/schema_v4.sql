-- Format 4: facts are kept as spans. A row that is the same in several checkpoints is stored once. Described in
-- docs/format.md. The span tables, one for each kind of fact, are made when the first fact of the kind is recorded.

-- A kind of fact, and its columns in their order. `keeping` is stable, sought or volatile.
CREATE TABLE fact (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE field (
    fact INTEGER NOT NULL REFERENCES fact (id),
    ordinal INTEGER NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    keeping TEXT NOT NULL,
    PRIMARY KEY (fact, ordinal)
) WITHOUT ROWID;

-- Observations of one machine, in the order of its checkpoints. Spans are valid within one series.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    machine INTEGER NOT NULL REFERENCES machine (id)
);
CREATE INDEX series_by_machine ON series (machine);

-- The facts of a checkpoint. The volatile values are those that differ from the base's. An observation on which others
-- are based stays when its checkpoint is removed; it has none then.
CREATE TABLE observation (
    id INTEGER PRIMARY KEY,
    checkpoint INTEGER UNIQUE,
    series INTEGER NOT NULL,
    base INTEGER,
    volatile BLOB NOT NULL
);
CREATE INDEX observation_by_series ON observation (series, checkpoint);
CREATE INDEX observation_by_base ON observation (base) WHERE base IS NOT NULL;
