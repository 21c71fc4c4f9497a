//! Gathers the contents of a report from the snapshot database.

use std::collections::{BTreeMap, HashMap, HashSet};

use retrovisor_snapshot::{
    Catalogue, CheckpointId, CheckpointRecord, IncidentRecord, MachineId, OperationRecord, OperationStatus,
    Verdict,
};

use super::content::{Incident, Operation, Point, Report, Series};
use crate::config::Config;
use crate::error::Result;
use crate::evaluation::Reason;
use crate::evaluator::Evaluator;
use crate::explain::Explanation;
use crate::feature::{FEATURES, Vector, position};
use crate::history;
use crate::scale::Scale;

/// Number of checkpoints drawn before the onset and after the alarm.
const SERIES_BEFORE: u64 = 30;
const SERIES_AFTER: u64 = 12;
/// Number of features drawn for one incident.
const SERIES_MAX: usize = 6;
/// Number of incidents explained in one report, the newest.
const INCIDENTS_MAX: usize = 20;

/// The report on a machine from the snapshot database alone, with the default configuration.
pub fn report(catalogue: &Catalogue, machine: MachineId) -> Result<Report> {
    report_with(catalogue, machine, Config::default())
}

/// The report on a machine from the snapshot database alone.
pub fn report_with(catalogue: &Catalogue, machine: MachineId, config: Config) -> Result<Report> {
    let record = catalogue.machine_by_id(machine)?;
    let mut past = Past::default();
    let evaluator = history::replay(catalogue, machine, config.clone(), None, |step| {
        let evaluation = step.evaluated.evaluation;
        let mut point = point(step.record);
        point.uptime_s = Some(step.evaluated.observation.moment.uptime_s).filter(|uptime| *uptime > 0.0);
        point.learning = evaluation.learning;
        let is_failure = |reason: &&Reason| reason.invariant && reason.subject.starts_with("kernel_");
        point.failure = evaluation.reasons.iter().find(is_failure).map(|reason| reason.text.clone());
        // A recorded verdict takes precedence; only checkpoints without one are evaluated now.
        if step.record.score.is_none() {
            point.verdict = evaluation.verdict;
            point.score = evaluation.score;
            point.reasons = evaluation.reasons.into_iter().map(|reason| reason.text).collect();
        }
        past.vectors.insert(step.record.id, step.evaluated.observation.vector);
        past.points.insert(step.record.id, point);
        Ok(())
    })?;
    past.complete(catalogue, machine, &evaluator)?;
    let incidents = past.incidents(catalogue, machine, &evaluator)?;
    let operations = past.operations(catalogue.operations(machine)?);
    let older_checkpoints = catalogue.checkpoints(machine)?.len().saturating_sub(past.points.len());
    Ok(Report {
        machine: record.name,
        driver: record.driver,
        config,
        baseline_checkpoints: (!evaluator.is_learning()).then(|| evaluator.baseline_len()),
        checkpoints: past.points.into_values().collect(),
        older_checkpoints,
        incidents,
        operations,
        features: FEATURES,
    })
}

/// The data about a machine's checkpoints.
#[derive(Default)]
struct Past {
    records: HashMap<CheckpointId, CheckpointRecord>,
    points: BTreeMap<CheckpointId, Point>,
    vectors: HashMap<CheckpointId, Vector>,
}

impl Past {
    /// Adds the checkpoints without facts, the parents, and the recorded verdicts.
    fn complete(&mut self, catalogue: &Catalogue, machine: MachineId, evaluator: &Evaluator) -> Result<()> {
        let records = catalogue.recent_checkpoints(machine, history::CHECKPOINTS_MAX)?;
        let sequences: HashMap<CheckpointId, u64> =
            records.iter().map(|record| (record.id, record.sequence)).collect();
        for record in &records {
            let point = self.points.entry(record.id).or_insert_with(|| point(record));
            point.parent = record.parent.and_then(|parent| sequences.get(&parent).copied());
            if point.verdict == Verdict::Unknown && record.score.is_none() && evaluator.is_good(record.id) {
                point.verdict = Verdict::Good;
            }
            if matches!(record.verdict, Verdict::Suspect | Verdict::Bad) {
                point.reasons =
                    catalogue.verdict(record.id)?.map(|verdict| verdict.reasons).unwrap_or_default();
            }
        }
        self.points.retain(|id, _| sequences.contains_key(id));
        self.records = records.into_iter().map(|record| (record.id, record)).collect();
        Ok(())
    }

    fn sequence(&self, checkpoint: CheckpointId) -> Option<u64> {
        self.points.get(&checkpoint).map(|point| point.sequence)
    }

    fn is_bad(&self, checkpoint: CheckpointId) -> bool {
        self.points.get(&checkpoint).is_some_and(|point| point.verdict == Verdict::Bad)
    }

    /// The recorded incidents; without any, every bad checkpoint whose parent is not bad.
    fn incidents(
        &self,
        catalogue: &Catalogue,
        machine: MachineId,
        evaluator: &Evaluator,
    ) -> Result<Vec<Incident>> {
        let mut opened: Vec<(CheckpointId, Option<IncidentRecord>)> = catalogue
            .incidents(machine)?
            .into_iter()
            .filter_map(|record| Some((self.alarm(record.first_bad)?, Some(record))))
            .collect();
        if opened.is_empty() {
            let parent_is_bad =
                |id: &CheckpointId| self.records[id].parent.is_some_and(|parent| self.is_bad(parent));
            let first = self.points.keys().filter(|id| self.is_bad(**id) && !parent_is_bad(id));
            opened = first.map(|id| (*id, None)).collect();
        }
        let mut seen = HashSet::new();
        opened.retain(|(alarm, _)| seen.insert(*alarm));
        let newest = opened.split_off(opened.len().saturating_sub(INCIDENTS_MAX));
        newest
            .into_iter()
            .filter_map(|(alarm, record)| self.incident(catalogue, evaluator, alarm, record).transpose())
            .collect()
    }

    /// The earliest bad checkpoint at or after `first_bad` on its timeline; `first_bad` itself if none is bad.
    fn alarm(&self, first_bad: CheckpointId) -> Option<CheckpointId> {
        let mut line = HashSet::from([first_bad]);
        for (id, record) in self.points.keys().filter_map(|id| Some((*id, self.records.get(id)?))) {
            if id == first_bad || record.parent.is_some_and(|parent| line.contains(&parent)) {
                line.insert(id);
                if self.is_bad(id) {
                    return Some(id);
                }
            }
        }
        self.points.contains_key(&first_bad).then_some(first_bad)
    }

    fn incident(
        &self,
        catalogue: &Catalogue,
        evaluator: &Evaluator,
        alarm: CheckpointId,
        record: Option<IncidentRecord>,
    ) -> Result<Option<Incident>> {
        if !self.vectors.contains_key(&alarm) {
            return Ok(None);
        }
        let explanation = evaluator.explain(catalogue, alarm)?;
        let (Some(alarm_at), Some(onset)) = (self.sequence(alarm), self.sequence(explanation.onset)) else {
            return Ok(None);
        };
        let delay =
            catalogue.ancestry(alarm)?.iter().take_while(|record| record.id != explanation.onset).count();
        let top = explanation.top_cause().map_or("no cause found".to_owned(), |cause| cause.text.clone());
        Ok(Some(Incident {
            name: record.as_ref().map(|record| record.name.clone()),
            summary: record.as_ref().map_or(top, |record| record.summary.clone()),
            action: record.and_then(|record| record.action),
            alarm: alarm_at,
            onset,
            last_good: explanation.last_good.and_then(|id| self.sequence(id)),
            delay_checkpoints: delay,
            series: self.series(evaluator, &explanation, onset, alarm_at),
            explanation,
        }))
    }

    fn series(
        &self,
        evaluator: &Evaluator,
        explanation: &Explanation,
        onset: u64,
        alarm: u64,
    ) -> Vec<Series> {
        let model = evaluator.segment_of(explanation.alarm).model();
        let span = onset.saturating_sub(SERIES_BEFORE)..=alarm + SERIES_AFTER;
        explanation
            .leads
            .iter()
            .take(SERIES_MAX)
            .filter_map(|name| {
                let at = position(name)?;
                let values = self.points.iter().filter(|(_, point)| span.contains(&point.sequence));
                let values = values
                    .filter_map(|(id, point)| Some((point.sequence, (*self.vectors.get(id)?.get(at)?)?)))
                    .collect();
                let usual = model.and_then(|model| model.scale(at)).map(Scale::range);
                Some(Series { feature: name, usual, values })
            })
            .collect()
    }

    fn operations(&self, records: Vec<OperationRecord>) -> Vec<Operation> {
        let done = records
            .into_iter()
            .filter(|record| record.status == OperationStatus::Done && record.kind.moves());
        done.map(|record| Operation {
            name: record.name,
            kind: record.kind.to_string(),
            at_ms: record.at_ms,
            from: record.before.and_then(|position| self.sequence(position.checkpoint)),
            to: record.after.and_then(|position| self.sequence(position.checkpoint)),
        })
        .collect()
    }
}

fn point(record: &CheckpointRecord) -> Point {
    Point {
        name: record.name.clone(),
        sequence: record.sequence,
        parent: None,
        timeline: record.timeline.0,
        label: record.label.clone(),
        kind: record.kind.to_string(),
        taken_at_ms: record.taken_at_ms,
        uptime_s: None,
        verdict: record.verdict,
        score: record.score.unwrap_or(0.0),
        learning: false,
        reasons: Vec::new(),
        failure: None,
        pause_us: record.pause_us,
        dirty_pages: record.dirty_pages,
        stored_bytes: record.stored_bytes,
    }
}
