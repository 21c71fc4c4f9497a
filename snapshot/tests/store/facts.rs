//! Facts against a plain model: whatever is recorded, removed and moved, each checkpoint that is there has exactly the rows
//! that were recorded for it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use retrovisor_guest::MemoryLayout;
use retrovisor_guest::fact::{Column, Keeping, Kind, Schema, Table, Value};
use retrovisor_snapshot::{
    CheckpointId, CheckpointRequest, CompactOptions, MachineId, Recorder, RetentionPolicy, RollbackRequest,
    Store,
};

use crate::toy::{Lab, Toy, open, quick_dir};

static TASKS: Schema = Schema {
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
static TASKS_GROWN: Schema = Schema {
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
static COUNTERS: Schema = Schema {
    table: "fact_counter",
    columns: &[Column::new("name", Kind::Text), Column::new("value", Kind::Integer).kept(Keeping::Volatile)],
};
static LINES: Schema = Schema {
    table: "fact_log",
    columns: &[Column::new("sequence", Kind::Integer), Column::new("text", Kind::Text)],
};
static NUMBERS: Schema =
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
struct Model(BTreeMap<CheckpointId, BTreeMap<&'static str, Rows>>);

#[derive(Clone, Debug)]
enum Step {
    Checkpoint,
    /// Facts of the newest checkpoint, as usual.
    Record(Vec<Facts>),
    /// Facts of any checkpoint, too late or again.
    RecordAt(prop::sample::Index, Vec<Facts>),
    /// Many checkpoints with facts that differ little.
    Run(u8),
    Rollback(prop::sample::Index),
    /// Checkpoints that stay, beside the newest ones.
    Prune(Vec<prop::sample::Index>, u64),
    OtherMachine(Vec<Facts>),
    Reopen,
}

#[derive(Clone, Debug)]
struct Facts {
    schema: &'static Schema,
    rows: Vec<Vec<Value>>,
}

fn cell(column: &Column) -> BoxedStrategy<Value> {
    let kind = match (column.kind, column.keeping) {
        (Kind::Integer, Keeping::Volatile) => {
            prop_oneof![any::<i64>(), 0..5_i64].prop_map(Value::Integer).boxed()
        }
        (Kind::Integer, _) => (0..4_i64).prop_map(Value::Integer).boxed(),
        (Kind::Real, _) => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), -1.0..1.0, Just(2.0)]
            .prop_map(Value::Real)
            .boxed(),
        (Kind::Text, _) => prop::sample::select(vec!["", "R", "/bin/ü\0", "'"]).prop_map(Value::from).boxed(),
    };
    prop_oneof![9 => kind, 1 => Just(Value::Null)].boxed()
}

fn facts() -> impl Strategy<Value = Facts> {
    prop::sample::select(vec![&TASKS, &TASKS, &TASKS_GROWN, &COUNTERS, &LINES, &NUMBERS]).prop_flat_map(
        |schema| {
            let row: Vec<_> = schema.columns.iter().map(cell).collect();
            prop::collection::vec(row, 0..7).prop_map(move |rows| Facts { schema, rows })
        },
    )
}

fn many() -> impl Strategy<Value = Vec<Facts>> {
    prop::collection::vec(facts(), 0..5)
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => Just(Step::Checkpoint),
        8 => many().prop_map(Step::Record),
        2 => (index(), many()).prop_map(|(at, facts)| Step::RecordAt(at, facts)),
        1 => (1..40_u8).prop_map(Step::Run),
        2 => index().prop_map(Step::Rollback),
        2 => (prop::collection::vec(index(), 0..6), 0..4_u64).prop_map(|(kept, last)| Step::Prune(kept, last)),
        1 => many().prop_map(Step::OtherMachine),
        1 => Just(Step::Reopen),
    ]
}

fn text(value: &Value) -> String {
    match value {
        Value::Real(number) if number.is_nan() => "Null".to_owned(),
        other => format!("{other:?}"),
    }
}

impl Model {
    fn record(&mut self, store: &Store, checkpoint: CheckpointId, facts: &[Facts]) {
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
    fn check(&mut self, store: &Store) {
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
            found.values_mut().for_each(|rows| rows.sort());
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
        self.check_no_garbage(store);
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

    /// Nothing is kept that no checkpoint needs.
    fn check_no_garbage(&self, store: &Store) {
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
}

fn project(names: &[String], row: &[Value], columns: &[&str]) -> Vec<String> {
    let cell = |column: &&str| {
        let at = names.iter().position(|name| name == column);
        at.map_or("Null".to_owned(), |at| text(&row[at]))
    };
    columns.iter().map(cell).collect()
}

/// A machine, another one, and what was recorded.
struct History {
    lab: Lab,
    other: (MachineId, Recorder, Toy),
    model: Model,
    pages: u64,
}

impl History {
    fn new() -> Self {
        let lab = Lab::new(8);
        let layout = MemoryLayout::flat(8 * 4096).unwrap();
        let identity = Toy::named("other", &layout);
        let id = lab.store.catalogue().add_machine(&identity).unwrap().id;
        let recorder = Recorder::new(Arc::clone(&lab.store), id).unwrap();
        let mut other = Toy::new(&layout);
        other.identity = identity;
        Self { lab, other: (id, recorder, other), model: Model::default(), pages: 0 }
    }

    fn checkpoints(&self) -> Vec<CheckpointId> {
        let records = self.lab.store.catalogue().checkpoints(self.lab.machine).unwrap();
        records.iter().map(|record| record.id).collect()
    }

    fn checkpoint(&mut self) -> CheckpointId {
        self.pages += 1;
        self.lab.toy.scribble(usize::try_from(self.pages % 8).unwrap(), self.pages);
        self.lab.checkpoint().id
    }

    fn apply(&mut self, step: &Step) {
        let all = self.checkpoints();
        let store = Arc::clone(&self.lab.store);
        match step {
            Step::Checkpoint => {
                self.checkpoint();
            }
            Step::Record(facts) => {
                let newest = self.checkpoint();
                self.model.record(&store, newest, facts);
            }
            Step::RecordAt(at, facts) if !all.is_empty() => self.model.record(&store, *at.get(&all), facts),
            Step::Run(count) => {
                for round in 0..i64::from(*count) {
                    let row = |pid: i64| {
                        let cpu = Value::Integer(round * 1_000_000 + pid % 3);
                        vec![
                            Value::Integer(pid + round / 20),
                            "/bin/run".into(),
                            cpu,
                            Value::Null,
                            "R".into(),
                        ]
                    };
                    let tasks = Facts { schema: &TASKS, rows: (0..20).map(row).collect() };
                    let newest = self.checkpoint();
                    self.model.record(&store, newest, &[tasks]);
                }
            }
            Step::Rollback(at) if !all.is_empty() => {
                let target = *at.get(&all);
                self.lab.recorder.rollback(&mut self.lab.toy, target, &RollbackRequest::default()).unwrap();
            }
            Step::Prune(kept, keep_last) if !all.is_empty() => {
                for at in kept {
                    store.pin(*at.get(&all), true).unwrap();
                }
                let policy =
                    RetentionPolicy { keep_last: *keep_last, undo_depth: 0, ..RetentionPolicy::nothing() };
                let plan = store.plan_prune(&policy, None).unwrap();
                let go_on = &mut |_| ControlFlow::Continue(());
                store.prune(&plan, &CompactOptions::default(), go_on).unwrap();
                for at in kept {
                    store.pin(*at.get(&all), false).unwrap();
                }
            }
            Step::OtherMachine(facts) => {
                let (_, recorder, toy) = &mut self.other;
                let taken = recorder.checkpoint(toy, &CheckpointRequest::default()).unwrap().record.id;
                self.model.record(&store, taken, facts);
            }
            Step::Reopen => self.reopen(store),
            Step::RecordAt(..) | Step::Rollback(..) | Step::Prune(..) => (),
        }
    }

    /// What is kept in memory is lost.
    fn reopen(&mut self, store: Arc<Store>) {
        drop(store);
        let elsewhere = quick_dir();
        let aside = open(elsewhere.path());
        let id = aside.catalogue().add_machine(&self.lab.toy.identity).unwrap().id;
        self.lab.recorder = Recorder::new(Arc::clone(&aside), id).unwrap();
        self.other.1 = Recorder::new(Arc::clone(&aside), id).unwrap();
        self.lab.store = aside;
        self.lab.store = open(self.lab.dir.path());
        self.lab.recorder = Recorder::new(Arc::clone(&self.lab.store), self.lab.machine).unwrap();
        self.other.1 = Recorder::new(Arc::clone(&self.lab.store), self.other.0).unwrap();
        self.lab.toy.dirty = retrovisor_guest::PageSet::full(&self.lab.toy.identity.layout);
    }

    /// In another store the facts are the same.
    fn check_archive(&self) {
        if self.checkpoints().is_empty() {
            return;
        }
        let dir = quick_dir();
        let file = dir.path().join("archive");
        let go_on = &mut |_| ControlFlow::Continue(());
        self.lab.store.export_archive(self.lab.machine, &file, go_on).unwrap();
        let there = open(&dir.path().join("store"));
        there.import_archive(None, &file, go_on).unwrap();
        let id = there.catalogue().machine("toy").unwrap().id;
        let imported = there.catalogue().checkpoints(id).unwrap();
        let mut model = Model::default();
        for (here, record) in self.checkpoints().iter().zip(&imported) {
            if let Some(facts) = self.model.0.get(here) {
                model.0.insert(record.id, facts.clone());
            }
        }
        model.check(&there);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn each_checkpoint_has_the_facts_that_were_recorded_for_it(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let mut history = History::new();
        for step in &steps {
            history.apply(step);
            if matches!(step, Step::Prune(..) | Step::RecordAt(..) | Step::Reopen) {
                history.model.check(&Arc::clone(&history.lab.store));
            }
        }
        history.model.check(&Arc::clone(&history.lab.store));
        history.check_archive();
    }
}
