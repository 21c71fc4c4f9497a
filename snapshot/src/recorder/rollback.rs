use std::sync::Arc;
use std::thread;
use std::time::Instant;

use retrovisor_guest::{Machine, MachineState, PageSet, RunState};

use super::capture::{Draft, run_on};
use super::checkpoint::Taken;
use super::engine::Recorder;
use super::journey::{Journey, Leaving};
use super::kept_disks::release;
use super::pending::wait_for;
use super::put::{Put, Ready};
use super::report::{
    CheckpointRequest, CheckpointTiming, PresentPolicy, RollbackPlan, RollbackReport, RollbackRequest,
    RollbackTiming,
};
use super::stand::Stand;
use super::swift::Swift;
use super::target::Target;
use super::task::Moving;
use crate::catalogue::{CheckpointKind, Durability, Move, OperationKind, Position};
use crate::clock::{now_ms, since_us};
use crate::error::{Error, Result};
use crate::id::{CheckpointId, OperationId};

/// What was made ready while the guest still ran.
struct Prepared {
    draft: Draft,
    ready: Ready,
    swift: Option<Swift>,
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
        let stand = self.pipeline.stand();
        let present = stand.position.ok_or_else(|| Error::NotFound {
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
            pages: Put::difference(&stand.map, &*self.store.map(target.id)?).pages(),
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
        machine.capabilities().check_clock(journey.request.clock)?;
        self.store.must_be_writable()?;
        // What is on its way to the disk is where the machine stands.
        self.drain(machine);
        let target = self.target(machine, journey.target)?;
        let mut timing = RollbackTiming::default();
        let to = Move {
            kind: journey.kind,
            target: Position { timeline: target.record.timeline, checkpoint: target.record.id },
            timeline: journey.timeline,
            undoes: journey.undoes,
            detail: journey.request.detail.clone(),
        };
        let policy = journey.request.present;
        let Prepared { mut draft, ready, swift } =
            self.prepare(machine, &target, policy, &to, &mut timing)?;

        let was_running = machine.run_state() == RunState::Running;
        let start = Instant::now();
        let mut took = CheckpointTiming::default();
        let frozen = self.freeze(machine, &mut draft, &mut took);
        (timing.stop_us, timing.find_us, timing.copy_us) = (took.stop_us, took.find_us, took.copy_us);
        let taken = match (frozen, swift) {
            // What does not fit into staging memory cannot be put back from there.
            (Ok(()), Some(swift)) if !draft.is_early => {
                let leaving = Leaving { draft, to, was_running, start, took };
                return self.leave(machine, journey, target, swift, leaving, timing);
            }
            (Ok(()), swift) => {
                swift.into_iter().for_each(Swift::cancel);
                let leaving = Leaving { draft, to, was_running, start, took };
                self.take_present(machine, &target, leaving, ready, &mut timing)
            }
            (Err(error), swift) => {
                swift.into_iter().for_each(Swift::cancel);
                self.abandon(&draft);
                Err(error)
            }
        };
        let (present, ready) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                // The present could not be kept: nothing was overwritten, and the guest runs on.
                // Should that fail as well, it is in the log; why the rollback failed matters more.
                let _ = run_on(machine, was_running, &mut timing.resume_us);
                return Err(error);
            }
        };
        let moved = self.put(machine, &target, &ready, journey, &present, &mut timing);
        let (pages_written, blocks_written, position) = match moved {
            Ok(moved) => moved,
            Err(error) => return Err(self.put_back(machine, &target, &present, error, was_running)),
        };
        // The machine stands at the target now, whether or not it can be set running.
        let resumed = run_on(machine, was_running, &mut timing.resume_us);
        timing.rollback_us = since_us(start);
        self.moved(position, &target)?;
        resumed.map_err(Error::Resume)?;
        let catalogue = self.store.catalogue();
        Ok(RollbackReport {
            present: Some(catalogue.checkpoint(present.position.checkpoint)?),
            target: target.record,
            timeline: position.timeline,
            new_timeline: journey.timeline.is_none(),
            pages_written,
            blocks_written,
            timing,
            operation: catalogue.operation(present.operation)?,
        })
    }

    /// The machine stands at a checkpoint now; to every other consumer, the frames that differ were written.
    pub(super) fn moved(&mut self, position: Position, target: &Target) -> Result<()> {
        let mut written = PageSet::empty(&self.layout);
        let before = self.pipeline.stand();
        for (index, ..) in before.map.diff(&target.map) {
            written.insert_index(index as u64);
        }
        let mut stand = Stand::at(&self.store, position)?;
        target.disks.seen_from(&before.disks, &mut stand.disks);
        self.pipeline.set_stand(stand);
        self.disks.forget();
        self.dirty.note(&written);
        // They are what the target has.
        self.dirty.take(self.own);
        Ok(())
    }

    /// Does all that can be done while the guest still runs: most of the present is stored, and most of what it will
    /// be replaced with is read.
    fn prepare(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        policy: PresentPolicy,
        to: &Move,
        timing: &mut RollbackTiming,
    ) -> Result<Prepared> {
        let mut took = CheckpointTiming::default();
        let start = Instant::now();
        // Where blocks are to be written, the present's must be safe before.
        let is_durable = policy == PresentPolicy::Durable || !target.disks.is_kept();
        let least = self.settings.precopy_pages_min;
        let mut draft = if is_durable {
            self.draft(machine, &mut took, least)?
        } else {
            // What the guest has written is looked for in any case.
            self.draft(machine, &mut took, 0)?
        };
        if is_durable && draft.staged.is_empty() && !draft.is_early {
            // Nobody has looked yet what the guest wrote: what replaces it is read before the pause, too.
            let mut found = PageSet::empty(&self.layout);
            if let Err(error) = self.dirty.collect(machine, &mut found) {
                self.abandon(&draft);
                return Err(error.into());
            }
            draft.late.union(&found);
        }
        let mut ready = Ready::new();
        let flushed = (is_durable && !draft.staged.is_empty()).then(|| {
            draft.is_early = true;
            self.pipeline.early_flushed(std::mem::take(&mut draft.staged))
        });
        let begun = Instant::now();
        let put = self.overwriting(target);
        let read = put.make_ready(&self.store, &mut ready);
        timing.prefetch_us = since_us(begun);
        let stored = flushed.map_or(Ok(()), |flushed| {
            flushed.recv().unwrap_or_else(|_| Err(Error::Behind { cause: "the storing thread ended".into() }))
        });
        timing.precopy_us = since_us(start).saturating_sub(timing.prefetch_us);
        let begun = Instant::now();
        let swift = stored.and(read).and_then(|()| {
            if is_durable { Ok(None) } else { self.prepare_swift(machine, target, to, &ready).map(Some) }
        });
        timing.prefetch_us += since_us(begun);
        match swift {
            Ok(swift) => Ok(Prepared { draft, ready, swift }),
            Err(error) => {
                self.abandon(&draft);
                Err(error)
            }
        }
    }

    /// The frames to be written on the way to a target.
    fn overwriting(&self, target: &Target) -> Put {
        let frames = self.differing(target);
        let indices = frames.indices().filter_map(|index| usize::try_from(index).ok());
        Put::new(indices.map(|index| (index, target.map.get(index))))
    }

    /// The guest stands still: checkpoints the present, with the operation as begun. While the driver captures the
    /// state, the last pages are stored, and what they will be replaced with is read.
    fn take_present(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        leaving: Leaving,
        mut ready: Ready,
        timing: &mut RollbackTiming,
    ) -> Result<(Present, Ready)> {
        let Leaving { mut draft, to, took, .. } = leaving;
        let at_ms = now_ms();
        self.send_ahead(&mut draft);

        let begun = Instant::now();
        let (store, ready_half, late) = (&self.store, &mut ready, &draft.late);
        let (state, read) = thread::scope(|scope| {
            let read = scope.spawn(|| {
                let late = late.indices().filter_map(|index| usize::try_from(index).ok());
                Put::new(late.map(|index| (index, target.map.get(index)))).make_ready(store, ready_half)
            });
            let state = machine.capture_state();
            timing.state_us = since_us(begun);
            (state, join(read.join()))
        });
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                self.abandon(&draft);
                return Err(error.into());
            }
        };
        if let Err(error) = read {
            release(machine, &state);
            self.abandon(&draft);
            return Err(error);
        }
        let taken = Taken {
            request: CheckpointRequest { label: None, kind: CheckpointKind::BeforeRollback },
            at_ms,
            state: state.clone(),
            disks: Vec::new(),
            staged: Arc::new(draft.staged),
            timing: took,
            since: begun,
            moving: Some(Moving::Begins(to)),
        };
        let stored = self.hand_over(machine, taken, true).and_then(|outcome| wait_for(&outcome));
        self.settle_until(machine, usize::MAX);
        timing.durable_us = since_us(begun).saturating_sub(timing.state_us);
        let committed = stored?.committed;
        let operation = committed.operation.unwrap_or(OperationId(0));
        Ok((Present { position: committed.position, state, operation }, ready))
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
    ) -> Result<(u64, u64, Position)> {
        let start = Instant::now();
        let stand = self.pipeline.stand();
        let put = Put::difference(&stand.map, &target.map);
        put.write(&self.store, ready, machine, &self.layout)?;
        let (state, blocks) = target.disks.go(&self.store, machine, &stand.disks, &target.state)?;
        timing.write_us = since_us(start);
        let start = Instant::now();
        machine.apply_state(&state, journey.request.clock)?;
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
        Ok((put.pages(), blocks, position))
    }
}

fn join<T>(joined: thread::Result<T>) -> T {
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
