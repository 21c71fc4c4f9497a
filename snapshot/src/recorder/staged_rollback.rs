//! Staged rollbacks: the guest runs on from the target before the state before is on the disk.

use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{ClockPolicy, Machine, MachineState, PageContent, PageSet};

use super::capture::{OpenCapture, is_running, resume_if_running};
use super::engine::Recorder;
use super::page_plan::{LoadedPages, PagePlan};
use super::pending::wait_for;
use super::prepare::latest;
use super::report::{CheckpointRequest, CheckpointTiming, RollbackReport, RollbackRequest, RollbackTiming};
use super::restore_plan::RestorePlan;
use super::retained_disks::release;
use super::rollback::PausedCapture;
use super::staging::{Staged, StagedContent};
use super::target::Target;
use super::task::{Captured, Outcome, RollbackStage};
use crate::catalogue::{CheckpointKind, Rollback};
use crate::clock::{now_ms, since_us};
use crate::disk::CapturedDisk;
use crate::error::{Error, Result};
use crate::store::Marker;

/// The state before a rollback, of which only this process has a copy.
struct RevertCopies {
    staged: Arc<Vec<Staged>>,
    state: MachineState,
    /// Frames that were overwritten.
    frames: PageSet,
    was_running: bool,
}

/// What was prepared while the guest runs.
struct StagedRollback {
    plan: RestorePlan,
    marker: Marker,
}

impl Recorder {
    /// Copies the current state, moves the machine and resumes the guest; then makes the current state durable. A
    /// failure reverts to the copies.
    pub(super) fn move_staged(
        &mut self,
        machine: &mut dyn Machine,
        target: Target,
        rollback: Rollback,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        let mut timing = RollbackTiming::default();
        let begun = Instant::now();
        // Frames are copied before the pause, however few they are.
        let mut capture = self.begin_capture(machine, &mut CheckpointTiming::default(), 0)?;
        timing.precopy_us = since_us(begun);
        if capture.is_early {
            // What does not fit into staging memory cannot be reverted to from there.
            self.abandon(&capture);
            return self.move_durably(machine, target, rollback, request);
        }
        let begun = Instant::now();
        let staged = self.plan_staged(machine, &target, &rollback)?;
        timing.prefetch_us = since_us(begun);

        let was_running = match is_running(machine) {
            Ok(was_running) => was_running,
            Err(error) => {
                staged.marker.end();
                return Err(error.into());
            }
        };
        let start = Instant::now();
        let mut took = CheckpointTiming::default();
        let paused = self.pause_and_copy(machine, &mut capture, &mut took);
        (timing.stop_us, timing.find_us, timing.copy_us) = (took.stop_us, took.find_us, took.copy_us);
        if let Err(error) = paused {
            staged.marker.end();
            let _ = resume_if_running(machine, was_running, &mut timing.resume_us);
            return Err(error);
        }
        let paused = PausedCapture { capture, rollback, was_running, start, timing: took };
        self.finish_staged(machine, target, staged, paused, request, timing)
    }

    /// Reads and lists what is to be written, and sets the marker: the last that is done before the pause.
    fn plan_staged(
        &self,
        machine: &dyn Machine,
        target: &Target,
        rollback: &Rollback,
    ) -> Result<StagedRollback> {
        let frames = self.differing(target);
        let mut loaded = LoadedPages::new();
        PagePlan::of(&frames, &target.map).load(&self.store, &mut loaded)?;
        let plan = RestorePlan::new(&self.layout, &frames, &target.map, &loaded, Some(machine.memory()))?;
        let (dir, catalogue) = (self.store.dir(), self.store.catalogue());
        let marker = Marker::set(dir, catalogue, self.machine, self.position(), rollback)?;
        Ok(StagedRollback { plan, marker })
    }

    /// The guest is paused and its dirty frames are copied.
    fn finish_staged(
        &mut self,
        machine: &mut dyn Machine,
        target: Target,
        staged: StagedRollback,
        paused: PausedCapture,
        request: &RollbackRequest,
        mut timing: RollbackTiming,
    ) -> Result<RollbackReport> {
        let StagedRollback { plan, marker } = staged;
        let PausedCapture { capture, rollback, was_running, start, timing: mut took } = paused;
        let (kind, new_timeline) = (rollback.kind, rollback.timeline.is_none());
        let at_ms = now_ms();
        let begun = Instant::now();
        let state = self.late_plan(&capture, &plan, &target).and_then(|late| {
            // Memory is overwritten in this pause.
            machine.check_devices()?;
            let state = machine.capture_state()?;
            timing.state_us = since_us(begun);
            Ok((late, state))
        });
        let (late, state) = match state {
            Ok(state) => state,
            Err(error) => {
                // Nothing was overwritten.
                let _ = resume_if_running(machine, was_running, &mut timing.resume_us);
                marker.end();
                return Err(error);
            }
        };

        let begun = Instant::now();
        let written = plan.write(&self.store, machine, &self.layout, &capture.late);
        let written = match &late {
            Some(late) => {
                written.and_then(|()| late.write(&self.store, machine, &self.layout, &capture.late))
            }
            None => written,
        };
        timing.write_us = since_us(begun);
        let begun = Instant::now();
        let applied = written.and_then(|()| Ok(machine.apply_state(&target.state, request.clock)?));
        timing.apply_us = since_us(begun);
        let resumed = if applied.is_ok() {
            resume_if_running(machine, was_running, &mut timing.resume_us)
        } else {
            Ok(())
        };
        timing.rollback_us = since_us(start);
        // None of this has to be done in the pause.
        let mut frames = plan.covered().clone();
        if let Some(late) = &late {
            frames.union(late.covered());
        }
        let copies =
            RevertCopies { staged: Arc::new(capture.staged), state: state.clone(), frames, was_running };
        if let Err(error) = applied {
            let error = self.revert_from_copies(machine, &target, &copies, error, true);
            if !matches!(error, Error::RevertFailed { .. }) {
                release(machine, &state);
                marker.end();
            }
            return Err(error);
        }
        took.pause_us = timing.rollback_us;
        let since = Instant::now();
        let synced = machine.sync_state(&state).map_err(Error::from);
        let synced = synced.and_then(|()| self.capture_disks(machine, &state));
        let is_synced = synced.is_ok();
        let stored = synced.and_then(|disks| {
            self.store_current(&copies, disks, at_ms, took, since, Some(RollbackStage::Done(rollback)))
        });
        timing.durable_us = since_us(since);
        let committed = match stored {
            Ok((committed, _)) => committed,
            Err(error) => {
                let error = self.revert_from_copies(machine, &target, &copies, error, false);
                // Only now: reverting needed the state that this releases.
                self.collect_outcomes(machine, usize::MAX);
                if !is_synced {
                    release(machine, &state);
                }
                if !matches!(error, Error::RevertFailed { .. }) {
                    marker.end();
                }
                return Err(error);
            }
        };
        self.collect_outcomes(machine, usize::MAX);
        marker.end();
        self.finish_move(committed.current, &target)?;
        resumed.map_err(Error::Resume)?;
        let catalogue = self.store.catalogue();
        let operation = committed.operation.ok_or(Error::Nothing { what: "record" })?;
        Ok(RollbackReport {
            kind,
            current: Some(catalogue.checkpoint(committed.position.checkpoint)?),
            target: target.record,
            timeline: committed.current.timeline,
            new_timeline,
            pages_written: plan.pages() + late.as_ref().map_or(0, RestorePlan::pages),
            // A staged rollback is done only if the driver retains the disks' contents.
            blocks_written: 0,
            timing,
            operation: catalogue.operation(operation)?,
        })
    }

    /// The frames that became dirty after the list was made and are not in it; mostly there are none.
    fn late_plan(
        &self,
        capture: &OpenCapture,
        plan: &RestorePlan,
        target: &Target,
    ) -> Result<Option<RestorePlan>> {
        let is_new = |index: &u64| !plan.covered().contains_index(*index);
        let mut indices = capture.late.indices().filter(is_new).peekable();
        if indices.peek().is_none() {
            return Ok(None);
        }
        let mut late = PageSet::empty(&self.layout);
        indices.for_each(|index| {
            late.insert_index(index);
        });
        let mut loaded = LoadedPages::new();
        PagePlan::of(&late, &target.map).load(&self.store, &mut loaded)?;
        RestorePlan::new(&self.layout, &late, &target.map, &loaded, None).map(Some)
    }

    fn store_current(
        &mut self,
        copies: &RevertCopies,
        disks: Vec<CapturedDisk>,
        at_ms: i64,
        timing: CheckpointTiming,
        since: Instant,
        rollback: Option<RollbackStage>,
    ) -> Outcome {
        let captured = Captured {
            request: CheckpointRequest { label: None, kind: CheckpointKind::BeforeRollback },
            at_ms,
            state: copies.state.clone(),
            disks,
            staged: Arc::clone(&copies.staged),
            dirty: PageSet::empty(&self.layout),
            timing,
            since,
            rollback,
            sampled: None,
        };
        wait_for(&self.submit(captured))
    }

    /// Reverts to the copies of the overwritten frames, which are still in memory, and to what is stored. If that
    /// fails as well, the state before is at least stored as a checkpoint, unless `may_store` is false because storing
    /// it is what failed. Returns the error to report.
    fn revert_from_copies(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        copies: &RevertCopies,
        error: Error,
        may_store: bool,
    ) -> Error {
        let target_name = target.record.name.clone();
        let source = Box::new(error);
        let answer = match self.write_copies(machine, copies) {
            Ok(()) => Error::Reverted { target: target_name, current: None, source },
            Err(second) => {
                let timing = CheckpointTiming::default();
                let is_stored = may_store
                    && machine.sync_state(&copies.state).is_ok()
                    && self
                        .capture_disks(machine, &copies.state)
                        .and_then(|disks| {
                            self.store_current(copies, disks, now_ms(), timing, Instant::now(), None)
                        })
                        .is_ok();
                if !is_stored {
                    tracing::error!(machine = self.name, "the state before a rollback that failed is lost");
                }
                let position = self.position();
                let record = position.map(|position| self.store.catalogue().checkpoint(position.checkpoint));
                let current = record.and_then(Result::ok).map_or_else(String::new, |record| record.name);
                Error::RevertFailed { target: target_name, current, source, second: Box::new(second) }
            }
        };
        // It is not certain what the memory holds now.
        self.dirty.note_all();
        answer
    }

    fn write_copies(&mut self, machine: &mut dyn Machine, copies: &RevertCopies) -> Result<()> {
        machine.pause()?;
        let mut found = PageSet::empty(&self.layout);
        self.dirty.collect(machine, &mut found)?;
        found.union(&copies.frames);
        let mut done = PageSet::empty(&self.layout);
        for (part, frame) in latest(&copies.staged, &self.layout) {
            let index = u64::from(frame.index);
            let Some(gfn) = self.layout.gfn(index).filter(|_| found.contains_index(index)) else { continue };
            machine.write_page(
                gfn,
                match frame.content {
                    StagedContent::Zero => PageContent::Zero,
                    StagedContent::Removed => PageContent::Removed,
                    StagedContent::Data(place) => PageContent::Data(part.page(place)),
                },
            )?;
            done.insert_index(index);
        }
        let baseline = self.pipeline.baseline();
        let mut rest = PageSet::empty(&self.layout);
        found.indices().filter(|index| !done.contains_index(*index)).for_each(|index| {
            rest.insert_index(index);
        });
        PagePlan::of(&rest, &baseline.map).write(&self.store, &LoadedPages::new(), machine, &self.layout)?;
        machine.apply_state(&copies.state, ClockPolicy::StandStill)?;
        resume_if_running(machine, copies.was_running, &mut 0).map_err(Error::Resume)
    }
}
