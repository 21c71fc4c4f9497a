use std::sync::Arc;
use std::thread;
use std::time::Instant;

use retrovisor_guest::{Machine, MachineState, PageSet};

use super::baseline::Baseline;
use super::capture::{OpenCapture, is_running, resume_if_running};
use super::engine::Recorder;
use super::page_plan::{LoadedPages, PagePlan};
use super::pending::wait_for;
use super::report::{
    CheckpointRequest, CheckpointTiming, CurrentPolicy, RollbackReport, RollbackRequest, RollbackTiming,
};
use super::retained_disks::release;
use super::target::Target;
use super::task::{Captured, RollbackStage};
use crate::catalogue::{CheckpointKind, Durability, Position, Rollback, RollbackKind};
use crate::clock::{now_ms, since_us};
use crate::error::{Error, Result};
use crate::id::{CheckpointId, OperationId};

/// What was prepared for a rollback while the guest runs.
struct Preparation {
    capture: OpenCapture,
    loaded: LoadedPages,
}

/// The guest is paused and its dirty frames are copied.
pub(super) struct PausedCapture {
    pub(super) capture: OpenCapture,
    pub(super) rollback: Rollback,
    pub(super) was_running: bool,
    /// From before the pause.
    pub(super) start: Instant,
    pub(super) timing: CheckpointTiming,
}

/// The state before a rollback, which is a durable checkpoint.
pub(super) struct Current {
    pub(super) position: Position,
    pub(super) state: MachineState,
    pub(super) operation: OperationId,
}

impl Recorder {
    /// Checkpoints the current state, then moves the machine back to `target` in place, on a new timeline.
    /// The guest is resumed if it ran before. A failure reverts to the current state and is reported.
    pub fn rollback(
        &mut self,
        machine: &mut dyn Machine,
        target: CheckpointId,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        let rollback = self.new_rollback(RollbackKind::Rollback, target, request)?;
        self.move_to(machine, rollback, request)
    }

    /// A rollback to a checkpoint, on a new timeline.
    pub(super) fn new_rollback(
        &self,
        kind: RollbackKind,
        target: CheckpointId,
        request: &RollbackRequest,
    ) -> Result<Rollback> {
        let record = self.store.rollback_target(self.machine, &self.name, &self.layout, target)?;
        Ok(Rollback {
            kind,
            target: Position { timeline: record.timeline, checkpoint: record.id },
            timeline: None,
            undoes: None,
            detail: request.detail.clone(),
            process: self.process.clone().unwrap_or_default(),
        })
    }

    /// Moves the machine to another checkpoint in place. If it fails, the operation is marked as failed.
    pub(super) fn move_to(
        &mut self,
        machine: &mut dyn Machine,
        rollback: Rollback,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        self.check(machine)?;
        machine.capabilities().check_clock(request.clock)?;
        self.store.must_have_room()?;
        self.record_pending_failure();
        // What is being stored is part of the baseline.
        self.drain(machine);
        let target = self.target(machine, rollback.target.checkpoint)?;
        machine.check_state(&target.state)?;
        self.is_moving = true;
        // Where blocks are to be written, the current ones must be durable before.
        let moved = if request.current == CurrentPolicy::Durable || !target.disks.is_retained() {
            self.move_durably(machine, target, rollback, request)
        } else {
            self.move_staged(machine, target, rollback, request)
        };
        self.is_moving = false;
        if let Err(error) = &moved {
            self.record_failure(&error.to_string(), !matches!(error, Error::RevertFailed { .. }));
        }
        moved
    }

    /// Makes the current state durable before the first page is overwritten.
    pub(super) fn move_durably(
        &mut self,
        machine: &mut dyn Machine,
        target: Target,
        rollback: Rollback,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        let (kind, timeline) = (rollback.kind, rollback.timeline);
        let mut timing = RollbackTiming::default();
        // Everything that the pause needs is taken before it (docs/locks.md): first this, then the content writer.
        let store = Arc::clone(&self.store);
        let _no_long_writes = store.catalogue().exclude_long_writes();
        let Preparation { mut capture, loaded } = self.prepare(machine, &target, &mut timing)?;

        let was_running = is_running(machine).inspect_err(|_| self.abandon(&capture))?;
        let start = Instant::now();
        let mut took = CheckpointTiming::default();
        let paused = self.pause_and_copy(machine, &mut capture, &mut took);
        (timing.stop_us, timing.find_us, timing.copy_us) = (took.stop_us, took.find_us, took.copy_us);
        let stored = match paused {
            Ok(()) => {
                let paused = PausedCapture { capture, rollback, was_running, start, timing: took };
                self.checkpoint_current(machine, &target, paused, loaded, &mut timing)
            }
            Err(error) => {
                self.abandon(&capture);
                Err(error)
            }
        };
        let (current, loaded) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                // Nothing was overwritten. If resuming fails as well, that is in the log: why the rollback failed
                // matters more.
                let _ = resume_if_running(machine, was_running, &mut timing.resume_us);
                return Err(error);
            }
        };
        let restored = self.overwrite(machine, &target, &loaded, timeline, &current, request, &mut timing);
        let (pages_written, blocks_written, position) = match restored {
            Ok(restored) => restored,
            Err(error) => {
                return Err(self.revert_from_store(machine, &target, &current, error, was_running));
            }
        };
        // The rollback is done, whether or not the guest can be resumed.
        let resumed = resume_if_running(machine, was_running, &mut timing.resume_us);
        timing.rollback_us = since_us(start);
        self.finish_move(position, &target)?;
        resumed.map_err(Error::Resume)?;
        let catalogue = self.store.catalogue();
        Ok(RollbackReport {
            kind,
            current: Some(catalogue.checkpoint(current.position.checkpoint)?),
            target: target.record,
            timeline: position.timeline,
            new_timeline: timeline.is_none(),
            pages_written,
            blocks_written,
            timing,
            operation: catalogue.operation(current.operation)?,
        })
    }

    /// The machine's state is that of a checkpoint now; for every other consumer, the frames that differ were written.
    pub(super) fn finish_move(&mut self, position: Position, target: &Target) -> Result<()> {
        let mut written = PageSet::empty(&self.layout);
        let before = self.pipeline.baseline();
        for (index, ..) in before.map.diff(&target.map) {
            written.insert_index(index as u64);
        }
        let mut baseline = Baseline::at(&self.store, position)?;
        target.disks.seen_from(&before.disks, &mut baseline.disks);
        self.pipeline.set_baseline(baseline);
        self.disks.forget();
        self.dirty.note(&written);
        // They are what the target has.
        self.dirty.take(self.own);
        Ok(())
    }

    /// Does all that can be done while the guest runs: most of the current state is stored, most of what replaces it
    /// is read, and the storing thread has the content writer.
    fn prepare(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        timing: &mut RollbackTiming,
    ) -> Result<Preparation> {
        let mut took = CheckpointTiming::default();
        let start = Instant::now();
        let mut capture = self.begin_capture(machine, &mut took, self.settings.precopy_pages_min)?;
        if capture.staged.is_empty() && !capture.is_early {
            // Without precopying, the guest's writes are not known yet: what replaces them is read before the pause,
            // too.
            let mut found = PageSet::empty(&self.layout);
            self.dirty.collect(machine, &mut found)?;
            capture.late.union(&found);
        }
        // Copied frames are stored while pages are read. Without any, the content writer is taken only after that.
        let copied = std::mem::take(&mut capture.staged);
        let flushed = (!copied.is_empty()).then(|| self.pipeline.early_flushed(copied));
        capture.is_early |= flushed.is_some();
        let begun = Instant::now();
        let mut loaded = LoadedPages::new();
        let read = self.page_plan_to(target).load(&self.store, &mut loaded);
        timing.prefetch_us = since_us(begun);
        let flushed = flushed.unwrap_or_else(|| self.pipeline.early_flushed(Vec::new()));
        capture.is_early = true;
        let stored = flushed
            .recv()
            .unwrap_or_else(|_| Err(Error::NotStored { cause: "the storing thread ended".to_owned() }));
        timing.precopy_us = since_us(start).saturating_sub(timing.prefetch_us);
        match stored.and(read) {
            Ok(()) => Ok(Preparation { capture, loaded }),
            Err(error) => {
                self.abandon(&capture);
                Err(error)
            }
        }
    }

    /// The frames that differ from the target by what is stored, and the dirty ones.
    pub(super) fn differing(&self, target: &Target) -> PageSet {
        let mut frames = self.dirty.written(self.own).clone();
        for (index, ..) in self.pipeline.baseline().map.diff(&target.map) {
            frames.insert_index(index as u64);
        }
        frames
    }

    /// What to write in these frames.
    fn page_plan_to(&self, target: &Target) -> PagePlan {
        PagePlan::of(&self.differing(target), &target.map)
    }

    /// The guest is paused: checkpoints the current state, with the operation as started. While the driver captures
    /// the state, the last pages are stored, and what replaces them is read.
    fn checkpoint_current(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        paused: PausedCapture,
        mut loaded: LoadedPages,
        timing: &mut RollbackTiming,
    ) -> Result<(Current, LoadedPages)> {
        let PausedCapture { mut capture, rollback, timing: took, .. } = paused;
        let at_ms = now_ms();
        self.submit_early(&mut capture);

        let begun = Instant::now();
        let (store, late_pages, late) = (&self.store, &mut loaded, &capture.late);
        let (state, read) = thread::scope(|scope| {
            let read = scope.spawn(|| PagePlan::of(late, &target.map).load(store, late_pages));
            let state = machine.capture_state();
            timing.state_us = since_us(begun);
            (state, join(read.join()))
        });
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                self.abandon(&capture);
                return Err(error.into());
            }
        };
        if let Err(error) = read {
            release(machine, &state);
            self.abandon(&capture);
            return Err(error);
        }
        let captured = Captured {
            request: CheckpointRequest { label: None, kind: CheckpointKind::BeforeRollback },
            at_ms,
            state: state.clone(),
            disks: Vec::new(),
            staged: Arc::new(capture.staged),
            dirty: PageSet::empty(&self.layout),
            timing: took,
            since: begun,
            rollback: Some(RollbackStage::Started(rollback)),
            sampled: None,
        };
        let stored = self.sync_and_submit(machine, captured, true).and_then(|outcome| wait_for(&outcome));
        self.collect_outcomes(machine, usize::MAX);
        timing.durable_us = since_us(begun).saturating_sub(timing.state_us);
        let (committed, _) = stored?;
        let operation = committed.operation.unwrap_or(OperationId(0));
        Ok((Current { position: committed.position, state, operation }, loaded))
    }

    /// Overwrites the current state, which is durable by now. Returns the pages and blocks written, and the position.
    #[expect(clippy::too_many_arguments, reason = "a step of one function, with its variables")]
    fn overwrite(
        &self,
        machine: &mut dyn Machine,
        target: &Target,
        loaded: &LoadedPages,
        timeline: Option<crate::id::TimelineId>,
        current: &Current,
        request: &RollbackRequest,
        timing: &mut RollbackTiming,
    ) -> Result<(u64, u64, Position)> {
        let start = Instant::now();
        let baseline = self.pipeline.baseline();
        let plan = PagePlan::difference(&baseline.map, &target.map);
        plan.write(&self.store, loaded, machine, &self.layout)?;
        let (state, blocks) = target.disks.restore(&self.store, machine, &baseline.disks, &target.state)?;
        timing.write_us = since_us(start);
        let start = Instant::now();
        machine.apply_state(&state, request.clock)?;
        timing.apply_us = since_us(start);
        let start = Instant::now();
        // Need not be durable: if the host loses power now, the guest is gone as well.
        let position = self.store.catalogue().complete_rollback(
            current.operation,
            self.machine,
            target.record.id,
            timeline,
            Durability::Process,
        )?;
        timing.note_us = since_us(start);
        Ok((plan.pages(), blocks, position))
    }
}

fn join<T>(joined: thread::Result<T>) -> T {
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
