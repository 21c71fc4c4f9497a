//! Reading and evaluating a checkpoint: facts, verdict, incident.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use retrovisor_analytics::{Config, Evaluation, Evaluator, Sample};
use retrovisor_guest::fact::{Column, Keeping, Kind, Schema, Table, Value};
use retrovisor_introspect::{Introspector, Observation};
use retrovisor_snapshot::{
    CheckpointId, CheckpointRecord, IncidentRecord, MachineId, NewIncident, Store, Verdict, VerdictRecord,
};

use crate::{error::ManagerError, kernels::kernel_library, panics};

/// What reading a checkpoint cost: a fact about us, beside those about the guest.
static READING: Schema = Schema {
    table: "fact_reading",
    columns: &[
        Column::new("introspect_us", Kind::Integer).kept(Keeping::Volatile),
        Column::new("reason", Kind::Text),
    ],
};

/// Evaluates the checkpoints of one machine.
pub trait Evaluate: Send {
    /// Evaluates a checkpoint, and keeps its verdict in the store.
    fn evaluate(&mut self, record: &CheckpointRecord) -> Result<Evaluated, ManagerError>;

    /// The machine is at another checkpoint now.
    fn moved_to(&mut self, target: CheckpointId);
}

/// Makes the evaluator of a machine.
pub type MakeEvaluator =
    Arc<dyn Fn(&Arc<Store>, MachineId) -> Result<Box<dyn Evaluate>, ManagerError> + Send + Sync>;

/// Evaluators that read the guest's memory and compare what they find with earlier checkpoints.
pub(crate) fn statistical() -> MakeEvaluator {
    Arc::new(|store, machine| Ok(Box::new(StatisticalEvaluator::new(Arc::clone(store), machine)?)))
}

/// The evaluations of one machine. Whatever its stored data or its guest's memory does to the evaluator, a panic included, ends
/// neither the machine's management nor the daemon: the checkpoint is kept without a verdict, and says so.
pub(crate) struct Evaluations {
    store: Arc<Store>,
    machine: MachineId,
    /// Made with the first checkpoint, and again after a panic.
    evaluator: Option<Box<dyn Evaluate>>,
    make: MakeEvaluator,
    moves: u64,
}

impl Evaluations {
    pub(crate) fn new(store: Arc<Store>, machine: MachineId, make: MakeEvaluator) -> Self {
        Self { store, machine, evaluator: None, make, moves: 0 }
    }

    /// Evaluates a checkpoint; the error says why it has no verdict.
    pub(crate) fn evaluate(&mut self, record: &CheckpointRecord) -> Result<Evaluated, String> {
        let evaluated = catch_unwind(AssertUnwindSafe(|| {
            let evaluator = match &mut self.evaluator {
                Some(evaluator) => evaluator,
                none => none.insert((self.make)(&self.store, self.machine)?),
            };
            evaluator.evaluate(record)
        }));
        let why = match evaluated {
            Ok(Ok(evaluated)) => return Ok(evaluated),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => {
                // What it holds may be inconsistent.
                self.evaluator = None;
                format!("an internal error: {}", panics::message(&*panic))
            }
        };
        let why = format!("it could not be evaluated: {why}");
        let unknown = VerdictRecord {
            verdict: Verdict::Unknown,
            score: 0.0,
            p_value: None,
            reasons: vec![why.clone()],
            features: Vec::new(),
        };
        if let Err(error) = self.store.catalogue().set_verdict(record.id, &unknown) {
            tracing::warn!(checkpoint = record.name, %error, "cannot write that a checkpoint has no verdict");
        }
        Err(why)
    }

    /// The machine is at another checkpoint now.
    pub(crate) fn moved_to(&mut self, target: CheckpointId) {
        self.moves += 1;
        let moved = catch_unwind(AssertUnwindSafe(|| {
            self.evaluator.iter_mut().for_each(|evaluator| evaluator.moved_to(target));
        }));
        if moved.is_err() {
            self.evaluator = None;
        }
    }

    /// How often the machine went to another checkpoint.
    pub(crate) fn moves(&self) -> u64 {
        self.moves
    }
}

/// What stays between the checkpoints of one machine.
struct StatisticalEvaluator {
    store: Arc<Store>,
    machine: MachineId,
    introspector: Introspector,
    statistics: Evaluator,
    last: Option<(CheckpointId, Sample)>,
    /// The incident that is open.
    open: Option<IncidentRecord>,
}

/// What came of evaluating one checkpoint.
pub struct Evaluated {
    /// The checkpoint with its verdict.
    pub record: CheckpointRecord,
    /// Why it has that verdict, strongest first.
    pub reasons: Vec<String>,
    /// The incident that was opened, if this is the first bad checkpoint.
    pub incident: Option<IncidentRecord>,
}

impl Evaluate for StatisticalEvaluator {
    /// Reads the checkpoint's memory, records facts and verdict, opens an incident when it is the first bad one.
    fn evaluate(&mut self, record: &CheckpointRecord) -> Result<Evaluated, ManagerError> {
        let began = Instant::now();
        let observation = self.observe(record.id)?;
        let introspect_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut tables = observation.tables();
        let reading = vec![introspect_us.into(), Value::from(observation.reason.clone())];
        tables.push(Table { schema: &READING, rows: vec![reading] });
        let store = Arc::clone(&self.store);
        let catalogue = store.catalogue();
        catalogue.record_facts(record.id, &tables)?;
        let sample = Sample::from_tables(record, &tables);
        let parent = match (record.parent, self.last.take()) {
            (Some(parent), Some((last, sample))) if last == parent => Some(sample),
            // A parent that was never read has no facts to compare with.
            (Some(parent), _) => Sample::load(catalogue, parent).ok(),
            (None, _) => None,
        };
        let evaluation = self.statistics.evaluate(&sample, parent.as_ref());
        self.last = Some((record.id, sample));
        catalogue.set_verdict(record.id, &evaluation.record())?;
        for settled in &evaluation.settled {
            catalogue.change_verdict(*settled, Verdict::Good)?;
        }
        if evaluation.change_accepted {
            self.close_incident(Evaluation::CHANGE_ACCEPTED)?;
        }
        let incident = self.incident(record, &evaluation)?;
        Ok(Evaluated {
            record: catalogue.checkpoint(record.id)?,
            reasons: evaluation.reasons.iter().map(|reason| reason.text.clone()).collect(),
            incident,
        })
    }

    /// The machine is at another checkpoint now: rates go on from there, and what was suspected is the other timeline's.
    fn moved_to(&mut self, target: CheckpointId) {
        self.statistics.rolled_back_to(target);
        self.introspector.forget_last();
        self.last = None;
        self.open = None;
    }
}

impl StatisticalEvaluator {
    fn new(store: Arc<Store>, machine: MachineId) -> Result<Self, ManagerError> {
        let statistics = Evaluator::load(store.catalogue(), machine, Config::default())?;
        Ok(Self {
            introspector: Introspector::with_library(kernel_library(&store)),
            store,
            machine,
            statistics,
            last: None,
            open: None,
        })
    }

    fn observe(&mut self, checkpoint: CheckpointId) -> Result<Observation, ManagerError> {
        if self.introspector.kernel().is_none() {
            self.learn();
        }
        let view = self.store.view(checkpoint)?;
        let registers = self.store.registers(checkpoint)?;
        Ok(self.introspector.observe(&view, &registers))
    }

    /// After a restart of the daemon: what later checkpoints are compared with is learned again from the first checkpoint of
    /// this boot that is still stored. Without one, the next to come is the reference.
    fn learn(&mut self) {
        let Ok(Some(first)) = self.store.catalogue().first_checkpoint_of_boot(self.machine) else { return };
        let memory = self.store.view(first).and_then(|view| Ok((view, self.store.registers(first)?)));
        match memory {
            Ok((view, registers)) => self.introspector.learn(&view, &registers),
            Err(error) => tracing::warn!(%first, %error, "the reference of this boot cannot be read"),
        }
    }

    fn incident(
        &mut self,
        record: &CheckpointRecord,
        evaluation: &Evaluation,
    ) -> Result<Option<IncidentRecord>, ManagerError> {
        if evaluation.verdict != Verdict::Bad || self.open.is_some() {
            return Ok(None);
        }
        let explanation = self.statistics.explain(self.store.catalogue(), record.id)?;
        let summary = explanation.causes.first().map_or_else(
            || evaluation.reasons.first().map_or_else(String::new, |reason| reason.text.clone()),
            |cause| cause.text.clone(),
        );
        let incident = NewIncident {
            first_bad: explanation.onset,
            last_good: explanation.last_good,
            kind: explanation.causes.first().map_or_else(String::new, |cause| cause.kind.to_string()),
            summary,
            detail: serde_json::to_value(&explanation).unwrap_or_default(),
            action: None,
        };
        self.open = Some(self.store.catalogue().add_incident(self.machine, &incident)?);
        Ok(self.open.clone())
    }

    /// Closes the open incident with what was done. The next bad checkpoint opens another one.
    fn close_incident(&mut self, action: &str) -> Result<(), ManagerError> {
        let Some(incident) = self.open.take() else { return Ok(()) };
        let closed = NewIncident {
            first_bad: incident.first_bad,
            last_good: incident.last_good,
            kind: incident.kind,
            summary: incident.summary,
            detail: incident.detail,
            action: Some(action.to_owned()),
        };
        self.store.catalogue().update_incident(incident.id, &closed)?;
        Ok(())
    }
}
