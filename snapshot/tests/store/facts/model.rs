//! The plain model: a row for each fact and checkpoint.

use std::collections::BTreeMap;

use retrovisor_guest::fact::{Column, Keeping, Kind, Schema, Table, Value};
use retrovisor_snapshot::{CheckpointId, Store};

pub(super) static TASKS: Schema = Schema {
    table: "fact_task",
    columns: &[
        Column::new("pid", Kind::Integer),
        Column::new("executable", Kind::Text).kept(Keeping::Sought),
        Column::new("cpu_ns", Kind::Integer).kept(Keeping::Volatile),
        Column::new("share", Kind::Real).kept(Keeping::Volatile),
        Column::new("state", Kind::Text).kept(Keeping::Volatile),
    ],
};
/// What a later version records.
pub(super) static TASKS_GROWN: Schema = Schema {
    table: "fact_task",
    columns: &[
        Column::new("pid", Kind::Integer),
        Column::new("executable", Kind::Text).kept(Keeping::Sought),
        Column::new("waits_ns", Kind::Integer).kept(Keeping::Volatile),
        Column::new("cpu_ns", Kind::Integer).kept(Keeping::Volatile),
        Column::new("user", Kind::Text),
        Column::new("share", Kind::Real).kept(Keeping::Volatile),
        Column::new("state", Kind::Text).kept(Keeping::Volatile),
    ],
};
pub(super) static COUNTERS: Schema = Schema {
    table: "fact_counter",
    columns: &[Column::new("name", Kind::Text), Column::new("value", Kind::Integer).kept(Keeping::Volatile)],
};
pub(super) static LINES: Schema = Schema {
    table: "fact_log",
    columns: &[Column::new("sequence", Kind::Integer), Column::new("text", Kind::Text)],
};
pub(super) static NUMBERS: Schema =
    Schema { table: "fact_number", columns: &[Column::new("number", Kind::Real).kept(Keeping::Volatile)] };

const COLUMNS: [(&str, &[&str]); 4] = [
    ("fact_task", &["pid", "executable", "cpu_ns", "share", "state", "waits_ns", "user"]),
    ("fact_counter", &["name", "value"]),
    ("fact_log", &["sequence", "text"]),
    ("fact_number", &["number"]),
];

/// The rows of a kind as text, a cell for each of `COLUMNS`, sorted.
type Rows = Vec<Vec<String>>;

/// What was recorded, by checkpoint and kind.
#[derive(Clone, Default)]
pub(super) struct Model(pub(super) BTreeMap<CheckpointId, BTreeMap<&'static str, Rows>>);

#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) schema: &'static Schema,
    pub(super) rows: Vec<Vec<Value>>,
}

fn text(value: &Value) -> String {
    match value {
        Value::Real(number) if number.is_nan() => "Null".to_owned(),
        other => format!("{other:?}"),
    }
}

impl Model {
    pub(super) fn record(&mut self, store: &Store, checkpoint: CheckpointId, facts: &[Facts]) {
        // A kind is recorded once at a time.
        let mut tables: Vec<Table> = Vec::new();
        for Facts { schema, rows } in facts {
            if tables.iter().all(|table| table.schema.table != schema.table) {
                tables.push(Table { schema, rows: rows.clone() });
            }
        }
        store.catalogue().record_facts(checkpoint, &tables).unwrap();
        let kinds = self.0.entry(checkpoint).or_default();
        for table in &tables {
            let (name, columns) = COLUMNS.iter().find(|(name, _)| *name == table.schema.table).unwrap();
            let place = |name: &&str| table.schema.columns.iter().position(|column| column.name == *name);
            let places: Vec<_> = columns.iter().map(place).collect();
            let row = |row: &Vec<Value>| {
                places.iter().map(|at| at.map_or("Null".to_owned(), |at| text(&row[at]))).collect()
            };
            let mut rows: Rows = table.rows.iter().map(row).collect();
            rows.sort();
            kinds.insert(name, rows);
        }
    }

    /// The store has what the model has.
    pub(super) fn check(&mut self, store: &Store) {
        let catalogue = store.catalogue();
        let mut there = BTreeMap::new();
        for machine in catalogue.machines().unwrap() {
            for record in catalogue.checkpoints(machine.id).unwrap() {
                there.insert(record.id, (machine.name.clone(), record.sequence));
            }
        }
        self.0.retain(|checkpoint, _| there.contains_key(checkpoint));
        let kinds = catalogue.fact_tables().unwrap();
        let ask = |sql: &str| catalogue.query(sql, &[], usize::MAX).unwrap();
        for (name, columns) in COLUMNS {
            if !kinds.iter().any(|kind| kind == name) {
                assert!(self.0.values().all(|facts| facts.get(name).is_none_or(Vec::is_empty)));
                continue;
            }
            // All of them at once.
            let all = ask(&format!("SELECT * FROM {name}"));
            let mut found: BTreeMap<i64, Rows> = BTreeMap::new();
            for row in &all.rows {
                let rows = found.entry(row[0].as_i64().unwrap()).or_default();
                rows.push(project(&all.columns, row, columns));
            }
            for rows in found.values_mut() {
                rows.sort();
            }
            let facts = |(checkpoint, facts): (&CheckpointId, &BTreeMap<&str, Rows>)| {
                facts.get(name).filter(|rows| !rows.is_empty()).map(|rows| (checkpoint.0, rows.clone()))
            };
            let expected: BTreeMap<_, _> = self.0.iter().filter_map(facts).collect();
            assert_eq!(found, expected, "{name}");
            // One by one.
            for checkpoint in there.keys() {
                let rows = catalogue.facts(*checkpoint, name).unwrap();
                let mut rows: Rows =
                    rows.rows.iter().map(|row| project(&rows.columns, row, columns)).collect();
                rows.sort();
                assert_eq!(rows, expected.get(&checkpoint.0).cloned().unwrap_or_default());
            }
            // With names.
            let joined = ask(&format!("SELECT machine, checkpoint, sequence FROM v_{name}"));
            assert_eq!(joined.rows.len(), all.rows.len());
            for row in joined.rows {
                let (machine, sequence) = &there[&CheckpointId(row[1].as_i64().unwrap())];
                assert_eq!(row, [Value::from(machine.as_str()), row[1].clone(), Value::from(*sequence)]);
            }
        }
        if kinds.iter().any(|kind| kind == "fact_task") {
            self.check_seen(
                &there,
                &ask("SELECT machine, value, first_sequence, last_sequence FROM v_seen").rows,
            );
        }
        check_no_garbage(store);
    }

    /// The first and last checkpoint of each executable.
    fn check_seen(&self, there: &BTreeMap<CheckpointId, (String, u64)>, found: &[Vec<Value>]) {
        let mut expected: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
        for (checkpoint, facts) in &self.0 {
            let (machine, sequence) = &there[checkpoint];
            for row in facts.get("fact_task").into_iter().flatten().filter(|row| row[1] != "Null") {
                let seen =
                    expected.entry((machine.clone(), row[1].clone())).or_insert((*sequence, *sequence));
                *seen = (seen.0.min(*sequence), seen.1.max(*sequence));
            }
        }
        let number = |value: &Value| u64::try_from(value.as_i64().unwrap()).unwrap();
        let found: BTreeMap<_, _> = found
            .iter()
            .map(|row| {
                let machine = row[0].as_str().unwrap().to_owned();
                ((machine, text(&row[1])), (number(&row[2]), number(&row[3])))
            })
            .collect();
        assert_eq!(found, expected);
    }
}

/// Nothing is kept that no checkpoint needs.
fn check_no_garbage(store: &Store) {
    let count = |sql: &str| store.catalogue().query(sql, &[], 1).unwrap().rows[0][0].as_i64().unwrap();
    assert_eq!(
        count(
            "SELECT count(*) FROM observation o WHERE checkpoint IS NULL
                 AND NOT EXISTS (SELECT 1 FROM observation d WHERE d.base = o.id)"
        ),
        0
    );
    assert_eq!(
        count("SELECT count(*) FROM observation WHERE checkpoint NOT IN (SELECT id FROM checkpoint)"),
        0
    );
    assert_eq!(count("SELECT count(*) FROM series WHERE id NOT IN (SELECT series FROM observation)"), 0);
    for (name, _) in COLUMNS {
        let span = name.replace("fact_", "span_");
        if count(&format!("SELECT count(*) FROM sqlite_schema WHERE name = '{span}'")) == 0 {
            continue;
        }
        let outside = format!(
            "SELECT count(*) FROM {span} WHERE NOT EXISTS
                 (SELECT 1 FROM observation WHERE series = _series AND checkpoint = _first)
             OR _last IS NOT NULL AND NOT EXISTS
                 (SELECT 1 FROM observation WHERE series = _series AND checkpoint = _last)"
        );
        assert_eq!(count(&outside), 0, "{span}");
    }
}

fn project(names: &[String], row: &[Value], columns: &[&str]) -> Vec<String> {
    let cell = |column: &&str| {
        let at = names.iter().position(|name| name == column);
        at.map_or("Null".to_owned(), |at| text(&row[at]))
    };
    columns.iter().map(cell).collect()
}
