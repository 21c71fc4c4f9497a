//! Evaluates a machine's stored checkpoints again, in the order in which they were taken.

use std::collections::{BTreeMap, HashMap};

use retrovisor_snapshot::{Catalogue, CheckpointId, CheckpointRecord, MachineId, Verdict};

use crate::config::Config;
use crate::error::Result;
use crate::evaluator::{Evaluated, Evaluator};
use crate::sample::Sample;

impl Evaluator {
    /// An evaluator that has evaluated those of a machine's checkpoints in the snapshot database that have facts, at
    /// most the newest 1,000.
    pub fn load(catalogue: &Catalogue, machine: MachineId, config: Config) -> Result<Self> {
        replay(catalogue, machine, config, None, |_| Ok(()))
    }
}

/// One evaluated checkpoint.
pub(crate) struct Step<'a> {
    pub(crate) record: &'a CheckpointRecord,
    pub(crate) evaluated: Evaluated,
}

/// Bound on the evaluated checkpoints, the newest ones: enough for any baseline, in bounded time.
pub(crate) const CHECKPOINTS_MAX: usize = 1000;

/// Samples kept in memory: parents are nearly always among the newest.
const SAMPLES_MAX: usize = 16;

/// Evaluates all checkpoints with facts, up to and including `until`, with a new evaluator.
pub(crate) fn replay(
    catalogue: &Catalogue,
    machine: MachineId,
    config: Config,
    until: Option<CheckpointId>,
    mut visit: impl FnMut(Step<'_>) -> Result<()>,
) -> Result<Evaluator> {
    let mut evaluator = Evaluator::new(config);
    let mut cache = SampleCache::default();
    let mut records = catalogue.checkpoints(machine)?;
    if let Some(until) = until {
        records.retain(|record| record.id <= until);
    }
    let shortened = records.len() > CHECKPOINTS_MAX;
    records.drain(..records.len().saturating_sub(CHECKPOINTS_MAX));
    let by_id: HashMap<CheckpointId, &CheckpointRecord> =
        records.iter().map(|record| (record.id, record)).collect();
    for record in &records {
        // A shortened history may begin during a fault, which must not become part of the baseline.
        if shortened && evaluator.is_learning() && matches!(record.verdict, Verdict::Suspect | Verdict::Bad) {
            continue;
        }
        if let Some(sample) = Sample::load_record(catalogue, record)? {
            if let Some(parent) = record.parent.and_then(|parent| by_id.get(&parent)) {
                cache.fetch(catalogue, parent)?;
            }
            let parent = record.parent.and_then(|parent| cache.samples.get(&parent));
            let evaluated = evaluator.evaluate_fully(&sample, parent);
            cache.put(sample);
            visit(Step { record, evaluated })?;
        }
    }
    Ok(evaluator)
}

#[derive(Default)]
struct SampleCache {
    samples: BTreeMap<CheckpointId, Sample>,
}

impl SampleCache {
    fn fetch(&mut self, catalogue: &Catalogue, record: &CheckpointRecord) -> Result<()> {
        if !self.samples.contains_key(&record.id)
            && let Some(sample) = Sample::load_record(catalogue, record)?
        {
            self.put(sample);
        }
        Ok(())
    }

    /// Adds a sample and drops the oldest others beyond the limit.
    fn put(&mut self, sample: Sample) {
        let keep = sample.checkpoint;
        self.samples.insert(keep, sample);
        while self.samples.len() > SAMPLES_MAX {
            let Some(oldest) = self.samples.keys().copied().find(|id| *id != keep) else { break };
            self.samples.remove(&oldest);
        }
    }
}
