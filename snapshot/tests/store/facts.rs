//! Facts against a plain model: whatever is recorded, removed and moved, each checkpoint that is there has exactly the
//! rows that were recorded for it.

mod model;

use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use retrovisor_guest::MemoryLayout;
use retrovisor_guest::fact::{Column, Keeping, Kind, Value};
use retrovisor_snapshot::{
    CheckpointId, CheckpointRequest, CompactOptions, MachineId, Recorder, RetentionPolicy, RollbackRequest,
    Store,
};

use self::model::{COUNTERS, Facts, LINES, Model, NUMBERS, TASKS, TASKS_GROWN};
use crate::toy::{Lab, Toy, open, quick_dir};

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
