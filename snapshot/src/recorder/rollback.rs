use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::Instant;

use retrovisor_guest::{Machine, MachineState, RunState};

use super::capture::{Draft, release, run_on};
use super::checkpoint::Taken;
use super::engine::{Recorder, Stand};
use super::put::{Put, Ready};
use super::report::{
    CheckpointRequest, CheckpointTiming, RollbackPlan, RollbackReport, RollbackRequest, RollbackTiming,
};
use super::staging::StagedFrame;
use super::target::Target;
use crate::catalogue::{CheckpointKind, Durability, NewOperation, OperationKind, OperationStatus, Position};
use crate::clock::{now_ms, since_us};
use crate::error::{Error, Result};
use crate::id::{CheckpointId, OperationId, TimelineId};
use crate::intake::Intake;

/// Where to go, and how it is to be recorded.
pub(super) struct Journey<'a> {
    pub(super) target: CheckpointId,
    pub(super) kind: OperationKind,
    pub(super) undoes: Option<OperationId>,
    /// The timeline to go on in; none for a new one.
    pub(super) timeline: Option<TimelineId>,
    pub(super) request: &'a RollbackRequest,
}

/// What was made ready while the guest still ran.
struct Prepared<'s> {
    intake: MutexGuard<'s, Intake>,
    draft: Draft,
    ready: Ready,
}

/// The present, safe on the disk.
pub(super) struct Present {
    pub(super) position: Position,
    pub(super) state: MachineState,
    pub(super) operation: OperationId,
}

impl Recorder {
    /// What [`Recorder::rollback`] would do.
    pub fn plan_rollback(&self, target: CheckpointId) -> Result<RollbackPlan> {
        let catalogue = self.store.catalogue();
        let present = self.stand.position.ok_or_else(|| Error::NotFound {
            what: "checkpoint",
            name: format!("of {}", self.name),
            help: "the machine has none yet; take one with `retrovisor checkpoint`",
        })?;
        let target = self.target_record(target)?;
        let kept: std::collections::HashSet<_> =
            catalogue.ancestry(target.id)?.into_iter().map(|record| record.id).collect();
        let mut left_behind = catalogue.ancestry(present.checkpoint)?;
        left_behind.retain(|record| !kept.contains(&record.id));
        Ok(RollbackPlan {
            present: catalogue.checkpoint(present.checkpoint)?,
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
        let target = self.target(machine, journey.target)?;
        let mut timing = RollbackTiming::default();
        let store = Arc::clone(&self.store);
        let prepared = self.prepare(machine, &store, &target, &mut timing)?;

        let was_running = machine.run_state() == RunState::Running;
        let start = Instant::now();
        let (present, ready) = match self.take_present(machine, journey, &target, prepared, &mut timing) {
            Ok(taken) => taken,
            Err(error) => {
                // The present could not be kept: nothing was overwritten, and the guest runs on.
                // Should that fail as well, it is in the log; why the rollback failed matters more.
                let _ = run_on(machine, was_running, &mut timing.resume_us);
                return Err(error);
            }
        };
        let moved = self.put(machine, &target, &ready, journey, &present, &mut timing);
        let (pages_written, position) = match moved {
            Ok(moved) => moved,
            Err(error) => return Err(self.put_back(machine, &target, &present, error, was_running)),
        };
        // The machine stands at the target now, whether or not it can be set running.
        let resumed = run_on(machine, was_running, &mut timing.resume_us);
        timing.rollback_us = since_us(start);
        self.stand = Stand::at(&self.store, position)?;
        self.unsaved.clear();
        resumed.map_err(Error::Resume)?;
        let catalogue = self.store.catalogue();
        Ok(RollbackReport {
            present: Some(catalogue.checkpoint(present.position.checkpoint)?),
            target: target.record,
            timeline: position.timeline,
            new_timeline: journey.timeline.is_none(),
            pages_written,
            timing,
            operation: catalogue.operation(present.operation)?,
        })
    }

    /// Does all that can be done while the guest still runs: most of the present is stored, and most of what it will
    /// be replaced with is read.
    fn prepare<'s>(
        &mut self,
        machine: &mut dyn Machine,
        store: &'s Arc<crate::store::Store>,
        target: &Target,
        timing: &mut RollbackTiming,
    ) -> Result<Prepared<'s>> {
        let mut prepared = Prepared { intake: store.intake()?, draft: self.draft(), ready: Ready::new() };
        let start = Instant::now();
        let done = self.precopy(machine, &mut prepared.intake, &mut prepared.draft).and_then(|()| {
            timing.precopy_us = since_us(start);
            let start = Instant::now();
            Put::difference(&prepared.draft.map, &target.map).make_ready(store, &mut prepared.ready)?;
            timing.prefetch_us = since_us(start);
            Ok(())
        });
        match done {
            Ok(()) => Ok(prepared),
            Err(error) => {
                prepared.intake.abandon();
                Err(error)
            }
        }
    }

    /// Stops the guest and checkpoints the present, with the operation as begun. While the driver captures the state,
    /// the last pages are taken in, and what they will be replaced with is read.
    fn take_present(
        &mut self,
        machine: &mut dyn Machine,
        journey: &Journey<'_>,
        target: &Target,
        prepared: Prepared<'_>,
        timing: &mut RollbackTiming,
    ) -> Result<(Present, Ready)> {
        let store = Arc::clone(&self.store);
        let Prepared { mut intake, mut draft, mut ready } = prepared;
        let at_ms = now_ms();
        let mut took = CheckpointTiming::default();
        let frozen = self.freeze(machine, &mut draft, &mut took);
        (timing.stop_us, timing.find_us, timing.copy_us) = (took.stop_us, took.find_us, took.copy_us);
        if let Err(error) = frozen {
            intake.abandon();
            return Err(error);
        }

        let begun = Instant::now();
        let (intake_half, staging, ready_half) = (&mut *intake, &self.staging, &mut ready);
        let overwritten = |frame: &StagedFrame| (frame.index, target.map.get(frame.index));
        let (state, names, read) = thread::scope(|scope| {
            let names = scope.spawn(|| intake_half.add(&store.key, store.catalogue(), &staging.data()));
            let read = scope
                .spawn(|| Put::new(staging.frames().iter().map(overwritten)).make_ready(&store, ready_half));
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
        let synced = machine.sync_state(&state).map_err(Error::from);
        let committed = synced.and(read).and(names).and_then(|names| {
            self.absorb(&names, &mut draft);
            let taken = Taken { request: &request, at_ms, state: &state, draft };
            let machine = self.machine;
            let after = Position { timeline: target.record.timeline, checkpoint: target.record.id };
            self.commit(&mut intake, taken, &mut took, |before| {
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
            Ok((position, Some(operation))) => Ok((Present { position, state, operation }, ready)),
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
        present: &Present,
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
            present.operation,
            self.machine,
            target.record.id,
            journey.timeline,
            Durability::Process,
        )?;
        timing.note_us = since_us(start);
        Ok((put.pages(), position))
    }
}

fn join<T>(joined: thread::Result<T>) -> T {
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
