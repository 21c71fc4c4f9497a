//! The synthetic guest with a real store behind it: real checkpoints of a memory-only machine, the guest's facts.

use std::collections::HashMap;
use std::sync::Arc;

use retrovisor_analytics::{Config, Evaluation, Evaluator, Sample};
use retrovisor_guest::fact::Table;
use retrovisor_guest::{Gpa, MemoryLayout};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{
    Access, Catalogue, CheckpointId, CheckpointRecord, CheckpointRequest, MachineId, Recorder,
    RollbackRequest, Store, Verdict,
};

use super::Guest;

const PAGES: u64 = 512;

pub struct StoredRun {
    pub guest: Guest,
    pub machine: MachineId,
    pub evaluator: Evaluator,
    pub evaluations: Vec<Evaluation>,
    pub records: Vec<CheckpointRecord>,
    samples: HashMap<CheckpointId, Sample>,
    saved: HashMap<CheckpointId, Guest>,
    memory: MemoryMachine,
    recorder: Recorder,
    store: Arc<Store>,
    writes: u64,
    _dir: tempfile::TempDir,
}

impl StoredRun {
    pub fn new(seed: u64) -> Self {
        Self::named(seed, "guest")
    }

    pub fn named(seed: u64, name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Store::open(dir.path(), Access::Create).expect("a store"));
        let memory =
            MemoryMachine::new(name, MemoryLayout::flat(PAGES * 4096).expect("a layout")).expect("a machine");
        let identity = retrovisor_guest::Machine::identity(&memory).clone();
        let machine = store.catalogue().add_machine(&identity).expect("a new machine").id;
        Self {
            guest: Guest::new(seed),
            machine,
            evaluator: Evaluator::new(Config::default()),
            evaluations: Vec::new(),
            records: Vec::new(),
            samples: HashMap::new(),
            saved: HashMap::new(),
            recorder: Recorder::new(store.clone(), machine).expect("a recorder"),
            memory,
            store,
            writes: 0,
            _dir: dir,
        }
    }

    pub fn catalogue(&self) -> &Catalogue {
        self.store.catalogue()
    }

    /// Runs on, takes a checkpoint, reads it, evaluates it, keeps the verdict: as the service does.
    pub fn step(&mut self) -> Evaluation {
        self.step_with(|_| {})
    }

    /// As [`Self::step`], with facts that are changed before they are recorded.
    pub fn step_with(&mut self, change: impl FnOnce(&mut [Table])) -> Evaluation {
        let seconds = 0.4 + 0.8 * self.guest.uniform();
        self.guest.run(seconds);
        // The machine's pages represent the guest's, a fourth of them.
        for _ in 0..(self.guest.dirty / 4.0) as u64 {
            self.writes += 1;
            let page = self.writes * 7 % PAGES;
            let bytes = (self.writes % 300).to_le_bytes();
            self.memory.poke(Gpa(page * 4096), &bytes).expect("memory");
        }
        let report =
            self.recorder.checkpoint(&mut self.memory, &CheckpointRequest::default()).expect("a checkpoint");
        let record = report.record;
        let mut tables = self.guest.tables();
        change(&mut tables);
        self.catalogue().record_facts(record.id, &tables).expect("facts");
        let sample = Sample::from_tables(&record, &tables);
        let parent = record.parent.and_then(|parent| self.samples.get(&parent));
        let evaluation = self.evaluator.evaluate(&sample, parent);
        self.catalogue().set_verdict(record.id, &evaluation.record()).expect("a verdict");
        for settled in &evaluation.settled {
            self.catalogue().change_verdict(*settled, Verdict::Good).expect("a verdict");
        }
        self.samples.insert(record.id, sample);
        self.saved.insert(record.id, self.guest.clone());
        self.records.push(record);
        self.evaluations.push(evaluation.clone());
        evaluation
    }

    pub fn learn(&mut self) {
        while self.evaluator.is_learning() {
            self.step();
        }
    }

    pub fn roll_back(&mut self, to: CheckpointId) {
        let noise = self.guest.rng;
        self.recorder.rollback(&mut self.memory, to, &RollbackRequest::default()).expect("a rollback");
        self.guest = self.saved[&to].clone();
        self.guest.rng = noise;
        self.evaluator.rolled_back_to(to);
    }

    pub fn name(&self, checkpoint: CheckpointId) -> String {
        self.catalogue().checkpoint(checkpoint).expect("a checkpoint").name
    }
}
