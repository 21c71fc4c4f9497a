use std::sync::Arc;
use std::thread;
use std::time::Instant;

use retrovisor_guest::{ClockPolicy, Machine, MachineState, RunState};

use super::engine::{Recorder, Stand, Taken, release, run_on};
use super::put::{Put, Ready};
use super::report::{
    CheckpointRequest, CheckpointTiming, RollbackPlan, RollbackReport, RollbackRequest, RollbackTiming,
};
use super::staging::StagedFrame;
use crate::catalogue::{
    CheckpointKind, CheckpointRecord, Durability, NewOperation, OperationKind, OperationStatus, Position,
};
use crate::clock::{now_ms, since_us};
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, OperationId, TimelineId};
use crate::page_map::PageMap;

/// Where to go, and how it is to be recorded.
pub(super) struct Journey<'a> {
    pub(super) target: CheckpointId,
    pub(super) kind: OperationKind,
    pub(super) undoes: Option<OperationId>,
    /// The timeline to go on in; none for a new one.
    pub(super) timeline: Option<TimelineId>,
    pub(super) request: &'a RollbackRequest,
}

/// A target, read before the guest is stopped.
pub(super) struct Target {
    pub(super) record: CheckpointRecord,
    pub(super) map: Arc<PageMap>,
    pub(super) state: MachineState,
}

impl Recorder {
    /// What [`Recorder::rollback`] would do.
    pub fn plan_rollback(&self, target: CheckpointId) -> Result<RollbackPlan> {
        let catalogue = self.store.catalogue();
        let present = self.stand.position.ok_or_else(|| self.no_checkpoint())?.checkpoint;
        let target = self.target_record(target)?;
        let kept: std::collections::HashSet<_> =
            catalogue.ancestry(target.id)?.into_iter().map(|record| record.id).collect();
        let mut left_behind = catalogue.ancestry(present)?;
        left_behind.retain(|record| !kept.contains(&record.id));
        Ok(RollbackPlan {
            present: catalogue.checkpoint(present)?,
            pages: Put::difference(&self.stand.map, &*self.store.map(target.id)?).pages(),
            target,
            left_behind,
        })
    }

    /// Checkpoints the present, then brings the machine back to `target` in place, on a new timeline.
    /// The guest runs on if it ran before. A failure puts the present back and says so.
    pub fn rollback(
        &mut self,
        machine: &mut dyn Machine,
        target: CheckpointId,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        let kind = OperationKind::Rollback;
        self.travel(machine, &Journey { target, kind, undoes: None, timeline: None, request })
    }

    /// Takes the machine to another checkpoint in place.
    pub(super) fn travel(
        &mut self,
        machine: &mut dyn Machine,
        journey: &Journey<'_>,
    ) -> Result<RollbackReport> {
        self.check(machine)?;
        let start = Instant::now();
        let target = self.target(machine, journey.target)?;
        let mut ready = Ready::new();
        // The pages that differ from the last checkpoint are read while the guest still runs.
        Put::difference(&self.stand.map, &target.map).make_ready(&self.store, &mut ready)?;
        let mut timing = RollbackTiming { prefetch_us: since_us(start), ..RollbackTiming::default() };
        let was_running = machine.run_state() == RunState::Running;

        let start = Instant::now();
        let taken = self.take_present(machine, journey, &target, &mut ready, &mut timing);
        let (present, present_state, operation) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                // The present could not be kept: nothing was overwritten, and the guest runs on.
                // Should that fail as well, it is in the log; why the rollback failed matters more.
                let _ = run_on(machine, was_running, &mut timing.resume_us);
                return Err(error);
            }
        };
        let moved = self.put(machine, &target, &ready, journey, operation, &mut timing);
        let (pages_written, position) = match moved {
            Ok(moved) => moved,
            Err(error) => {
                let failure = Failure { error, present, present_state, operation };
                return Err(self.put_back(machine, &target, failure, was_running));
            }
        };
        // The machine stands at the target now, whether or not it can be set running.
        self.stand = Stand::at(&self.store, position)?;
        self.unsaved.clear();
        run_on(machine, was_running, &mut timing.resume_us).map_err(Error::Resume)?;
        timing.rollback_us = since_us(start);
        let catalogue = self.store.catalogue();
        Ok(RollbackReport {
            present: Some(catalogue.checkpoint(present.checkpoint)?),
            target: target.record,
            timeline: position.timeline,
            new_timeline: journey.timeline.is_none(),
            pages_written,
            timing,
            operation: catalogue.operation(operation)?,
        })
    }

    /// Stops the guest and checkpoints the present, with the operation as begun. While the driver captures the state,
    /// the pages are taken in already, and what they will be replaced with is read.
    fn take_present(
        &mut self,
        machine: &mut dyn Machine,
        journey: &Journey<'_>,
        target: &Target,
        ready: &mut Ready,
        timing: &mut RollbackTiming,
    ) -> Result<(Position, MachineState, OperationId)> {
        let store = Arc::clone(&self.store);
        let mut intake = store.intake()?;
        let taken_at_ms = now_ms();
        let mut took = CheckpointTiming::default();
        let frozen = self.freeze(machine, &mut took);
        (timing.stop_us, timing.find_us, timing.copy_us) = (took.stop_us, took.find_us, took.copy_us);
        frozen?;

        let begun = Instant::now();
        let (intake_half, staging) = (&mut *intake, &self.staging);
        let overwritten = |frame: &StagedFrame| (frame.index, target.map.get(frame.index));
        let (state, names, read) = thread::scope(|scope| {
            let names = scope.spawn(|| intake_half.add(&store.key, store.catalogue(), &staging.data()));
            let read =
                scope.spawn(|| Put::new(staging.frames().iter().map(overwritten)).make_ready(&store, ready));
            let state = machine.capture_state();
            timing.state_us = since_us(begun);
            (state, join(names.join()), join(read.join()))
        });
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                intake.abandon();
                return Err(error.into());
            }
        };
        let request = CheckpointRequest { label: None, kind: CheckpointKind::BeforeRollback };
        let committed = read.and(names).and_then(|names: Vec<ContentRef>| {
            let taken = Taken { request: &request, at_ms: taken_at_ms, state: &state, names };
            let machine = self.machine;
            let after = Position { timeline: target.record.timeline, checkpoint: target.record.id };
            self.commit(&mut intake, &taken, &mut took, |before| {
                Some(NewOperation {
                    machine,
                    kind: journey.kind,
                    status: OperationStatus::Started,
                    before: Some(before),
                    after: Some(after),
                    undoes: journey.undoes,
                    detail: &journey.request.detail,
                })
            })
        });
        self.staging.clear();
        timing.durable_us = since_us(begun).saturating_sub(timing.state_us);
        match committed {
            Ok((position, Some(operation))) => Ok((position, state, operation)),
            Ok((_, None)) => unreachable!("the operation was given with the commit"),
            Err(error) => {
                intake.abandon();
                release(machine, &state);
                Err(error)
            }
        }
    }

    /// Overwrites the present, which is safe by now.
    fn put(
        &self,
        machine: &mut dyn Machine,
        target: &Target,
        ready: &Ready,
        journey: &Journey<'_>,
        operation: OperationId,
        timing: &mut RollbackTiming,
    ) -> Result<(u64, Position)> {
        let start = Instant::now();
        let put = Put::difference(&self.stand.map, &target.map);
        put.write(&self.store, ready, machine, &self.layout)?;
        timing.write_us = since_us(start);
        let start = Instant::now();
        machine.apply_state(&target.state, journey.request.clock)?;
        timing.apply_us = since_us(start);
        let start = Instant::now();
        // Needs no waiting for the disk: should the host lose power now, the guest is gone as well.
        let position = self.store.catalogue().finish(
            operation,
            self.machine,
            target.record.id,
            journey.timeline,
            Durability::Process,
        )?;
        timing.note_us = since_us(start);
        Ok((put.pages(), position))
    }

    /// Undoes a half-done journey. The answer is the error to report.
    fn put_back(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        failure: Failure,
        was_running: bool,
    ) -> Error {
        // What the memory holds now is not certain: the next checkpoint looks at every frame.
        self.unsaved = retrovisor_guest::PageSet::full(&self.layout);
        let name = |id| self.store.catalogue().checkpoint(id).map_or_else(|_| id.to_string(), |c| c.name);
        let (to, present) = (target.record.name.clone(), name(failure.present.checkpoint));
        let source = Box::new(failure.error);
        let back = Put::difference(&target.map, &self.stand.map)
            .write(&self.store, &Ready::new(), machine, &self.layout)
            .and_then(|()| Ok(machine.apply_state(&failure.present_state, ClockPolicy::StandStill)?))
            .and_then(|()| run_on(machine, was_running, &mut 0).map_err(Error::Resume));
        if let Err(second) = back {
            return Error::Stranded { target: to, present, source, second: Box::new(second) };
        }
        if let Err(error) = self.store.catalogue().fail(failure.operation, &source.to_string()) {
            tracing::warn!(%error, "a failed rollback could not be noted");
        }
        Error::PutBack { target: to, present, source }
    }

    /// Reads a target.
    pub(super) fn target(&self, machine: &dyn Machine, id: CheckpointId) -> Result<Target> {
        let record = self.target_record(id)?;
        let state = self.store.state(id)?;
        let vcpus = machine.identity().vcpus;
        if state.vcpus.len() != vcpus as usize {
            return Err(Error::Machine(retrovisor_guest::MachineError::Mismatch {
                what: "number of vCPUs".into(),
                expected: state.vcpus.len().to_string(),
                found: vcpus.to_string(),
            }));
        }
        Ok(Target { record, map: self.store.map(id)?, state })
    }

    /// The record of a target, which must be of a machine with the same memory.
    fn target_record(&self, id: CheckpointId) -> Result<CheckpointRecord> {
        let record = self.store.catalogue().checkpoint(id)?;
        if record.machine != self.machine {
            let other = self.store.catalogue().machine_by_id(record.machine)?;
            if other.identity.layout != self.layout {
                let why = format!(
                    "{record} belongs to machine {}, whose memory lies differently from that of {}",
                    other.name, self.name
                );
                return Err(Error::Invalid { what: "target", why });
            }
        }
        Ok(record)
    }

    fn no_checkpoint(&self) -> Error {
        Error::NotFound {
            what: "checkpoint",
            name: format!("of {}", self.name),
            help: "the machine has none yet; take one with `retrovisor checkpoint`",
        }
    }
}

/// A journey that failed after the present was kept.
struct Failure {
    error: Error,
    present: Position,
    present_state: MachineState,
    operation: OperationId,
}

fn join<T>(joined: thread::Result<T>) -> T {
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
