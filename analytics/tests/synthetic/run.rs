//! The synthetic guest with its checkpoints and its evaluator.

use std::collections::HashMap;

use retrovisor_analytics::{Config, Evaluation, Evaluator, Sample};
use retrovisor_snapshot::{CheckpointId, CheckpointKind, CheckpointRecord, MachineId, TimelineId, Verdict};

use super::Guest;

/// Gives checkpoints their ids and their place on timelines.
#[derive(Clone, Debug)]
pub struct Records {
    next: i64,
    pub timeline: i64,
    pub at: Option<CheckpointId>,
}

impl Records {
    pub fn new() -> Self {
        Self { next: 1, timeline: 1, at: None }
    }

    pub fn go_back_to(&mut self, checkpoint: CheckpointId) {
        self.timeline += 1;
        self.at = Some(checkpoint);
    }

    pub fn take(&mut self, guest: &Guest) -> CheckpointRecord {
        let dirty = guest.dirty as u64;
        let record = CheckpointRecord {
            id: CheckpointId(self.next),
            name: format!("c{}", self.next),
            machine: MachineId(1),
            timeline: TimelineId(self.timeline),
            parent: self.at,
            sequence: self.next as u64,
            label: None,
            kind: CheckpointKind::Automatic,
            taken_at_ms: 1_700_000_000_000 + self.next * 700,
            pause_us: 9000,
            durable_us: 20_000,
            dirty_pages: dirty,
            changed_pages: dirty,
            new_pages: dirty / 3 + self.next as u64 % 7,
            zero_pages: dirty / 20,
            stored_bytes: dirty * 900,
            verdict: Verdict::Unknown,
            score: None,
            doubtful: false,
        };
        self.at = Some(record.id);
        self.next += 1;
        record
    }
}

/// A guest, its checkpoints and its evaluator: what the service does, without a machine.
pub struct Run {
    pub guest: Guest,
    pub records: Records,
    pub evaluator: Evaluator,
    pub samples: HashMap<CheckpointId, Sample>,
    pub saved: HashMap<CheckpointId, Guest>,
    pub evaluations: Vec<Evaluation>,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        Self {
            guest: Guest::new(seed),
            records: Records::new(),
            evaluator: Evaluator::new(Config::default()),
            samples: HashMap::new(),
            saved: HashMap::new(),
            evaluations: Vec::new(),
        }
    }

    /// Runs on for an uneven interval, takes a checkpoint and has it evaluated.
    pub fn step(&mut self) -> &Evaluation {
        let seconds = 0.4 + 0.8 * self.guest.uniform();
        self.guest.run(seconds);
        self.checkpoint()
    }

    pub fn checkpoint(&mut self) -> &Evaluation {
        let record = self.records.take(&self.guest);
        let sample = Sample::from_tables(&record, &self.guest.tables());
        let parent = record.parent.and_then(|parent| self.samples.get(&parent));
        self.evaluations.push(self.evaluator.evaluate(&sample, parent));
        self.samples.insert(record.id, sample);
        self.saved.insert(record.id, self.guest.clone());
        self.evaluations.last().expect("just pushed")
    }

    pub fn roll_back(&mut self, to: CheckpointId) {
        let noise = self.guest.rng;
        self.guest = self.saved[&to].clone();
        // The past is the same, the future is not.
        self.guest.rng = noise;
        self.records.go_back_to(to);
        self.evaluator.rolled_back_to(to);
    }
}
