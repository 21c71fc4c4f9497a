//! The quick way back: the guest runs on from the past before its present is on the disk.

use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{ClockPolicy, Machine, MachineState, PageContent, PageSet};

use super::capture::{Draft, run_on};
use super::checkpoint::Taken;
use super::engine::Recorder;
use super::journey::{Journey, Leaving};
use super::kept_disks::release;
use super::overwrite::Overwrite;
use super::pending::{Stored, wait_for};
use super::put::{Put, Ready};
use super::ready::latest;
use super::report::{CheckpointRequest, CheckpointTiming, RollbackReport, RollbackTiming};
use super::staging::{Staged, StagedContent};
use super::target::Target;
use super::task::Moving;
use crate::catalogue::{CheckpointKind, Move};
use crate::clock::{now_ms, since_us};
use crate::disk::DiskDraft;
use crate::error::{Error, Result};
use crate::store::Marker;

/// A machine that has left its present, of which only this process knows.
struct Left {
    staged: Arc<Vec<Staged>>,
    state: MachineState,
    /// Frames that were overwritten.
    frames: PageSet,
    was_running: bool,
}

/// What was made ready while the guest still ran.
pub(super) struct Swift {
    overwrite: Overwrite,
    marker: Marker,
}

impl Swift {
    /// It does not come to that.
    pub(super) fn cancel(self) {
        self.marker.end();
    }
}

impl Recorder {
    /// The frames that differ from the target by what is stored, and the dirty ones.
    pub(super) fn differing(&self, target: &Target) -> PageSet {
        let mut frames = self.dirty.written(self.own).clone();
        for (index, ..) in self.pipeline.stand().map.diff(&target.map) {
            frames.insert_index(index as u64);
        }
        frames
    }

    /// Lists what will be written, and sets the marker: the last that is done before the guest is stopped.
    pub(super) fn prepare_swift(
        &self,
        machine: &dyn Machine,
        target: &Target,
        to: &Move,
        ready: &Ready,
    ) -> Result<Swift> {
        let frames = self.differing(target);
        let overwrite = Overwrite::new(&self.layout, &frames, &target.map, ready, Some(machine.memory()))?;
        let (dir, catalogue) = (self.store.dir(), self.store.catalogue());
        let marker = Marker::set(dir, catalogue, self.machine, self.position(), to)?;
        Ok(Swift { overwrite, marker })
    }

    /// The guest stands still and its dirty frames are copied: puts the target in place and lets the guest run on; then
    /// makes the present durable. A failure puts the present back.
    pub(super) fn leave(
        &mut self,
        machine: &mut dyn Machine,
        journey: &Journey<'_>,
        target: Target,
        swift: Swift,
        leaving: Leaving,
        mut timing: RollbackTiming,
    ) -> Result<RollbackReport> {
        let Swift { overwrite, marker } = swift;
        let Leaving { draft, to, was_running, start, mut took } = leaving;
        let at_ms = now_ms();
        let begun = Instant::now();
        let state = self.late(&draft, &overwrite, &target).and_then(|late| {
            let state = machine.capture_state()?;
            timing.state_us = since_us(begun);
            Ok((late, state))
        });
        let (late, state) = match state {
            Ok(ready) => ready,
            Err(error) => {
                // Nothing was overwritten.
                let _ = run_on(machine, was_running, &mut timing.resume_us);
                marker.end();
                self.abandon(&draft);
                return Err(error);
            }
        };

        let begun = Instant::now();
        let written = overwrite.write(&self.store, machine, &self.layout, &draft.late);
        let written = match &late {
            Some(late) => written.and_then(|()| late.write(&self.store, machine, &self.layout, &draft.late)),
            None => written,
        };
        timing.write_us = since_us(begun);
        let begun = Instant::now();
        let applied = written.and_then(|()| Ok(machine.apply_state(&target.state, journey.request.clock)?));
        timing.apply_us = since_us(begun);
        let resumed =
            if applied.is_ok() { run_on(machine, was_running, &mut timing.resume_us) } else { Ok(()) };
        timing.rollback_us = since_us(start);
        // Nothing of this has to be done while the guest stands still.
        let mut frames = overwrite.covered().clone();
        if let Some(late) = &late {
            frames.union(late.covered());
        }
        let left = Left { staged: Arc::new(draft.staged), state: state.clone(), frames, was_running };
        if let Err(error) = applied {
            let error = self.take_back(machine, &target, &left, error, true);
            if !matches!(error, Error::RevertFailed { .. }) {
                release(machine, &state);
                marker.end();
            }
            return Err(error);
        }
        took.pause_us = timing.rollback_us;
        let since = Instant::now();
        let synced = machine.sync_state(&state).map_err(Error::from);
        let synced = synced.and_then(|()| self.disk_drafts(machine, &state));
        let is_synced = synced.is_ok();
        let stored = synced.and_then(|disks| {
            self.keep_present(&left, disks, at_ms, took, since, Some(Moving::Happened(to)))
        });
        timing.durable_us = since_us(since);
        let committed = match stored {
            Ok(stored) => stored.committed,
            Err(error) => {
                let error = self.take_back(machine, &target, &left, error, false);
                // Only now: putting it back needed the state that this lets go of.
                self.settle_until(machine, usize::MAX);
                if !is_synced {
                    release(machine, &state);
                }
                if !matches!(error, Error::RevertFailed { .. }) {
                    marker.end();
                }
                return Err(error);
            }
        };
        self.settle_until(machine, usize::MAX);
        marker.end();
        self.moved(committed.stands, &target)?;
        resumed.map_err(Error::Resume)?;
        let catalogue = self.store.catalogue();
        let operation = committed.operation.ok_or(Error::Nothing { what: "note" })?;
        Ok(RollbackReport {
            current: Some(catalogue.checkpoint(committed.position.checkpoint)?),
            target: target.record,
            timeline: committed.stands.timeline,
            new_timeline: journey.timeline.is_none(),
            pages_written: overwrite.pages() + late.as_ref().map_or(0, Overwrite::pages),
            // Only where the driver keeps the disks' contents is this way taken.
            blocks_written: 0,
            timing,
            operation: catalogue.operation(operation)?,
        })
    }

    /// The frames that became dirty after the list was made and are not in it; mostly there are none.
    fn late(&self, draft: &Draft, overwrite: &Overwrite, target: &Target) -> Result<Option<Overwrite>> {
        let is_new = |index: &u64| !overwrite.covered().contains_index(*index);
        let mut indices = draft.late.indices().filter(is_new).peekable();
        if indices.peek().is_none() {
            return Ok(None);
        }
        let mut late = PageSet::empty(&self.layout);
        indices.for_each(|index| {
            late.insert_index(index);
        });
        let mut ready = Ready::new();
        let frames = late.indices().filter_map(|index| usize::try_from(index).ok());
        Put::new(frames.map(|index| (index, target.map.get(index)))).make_ready(&self.store, &mut ready)?;
        Overwrite::new(&self.layout, &late, &target.map, &ready, None).map(Some)
    }

    fn keep_present(
        &mut self,
        left: &Left,
        disks: Vec<DiskDraft>,
        at_ms: i64,
        timing: CheckpointTiming,
        since: Instant,
        moving: Option<Moving>,
    ) -> Result<Stored> {
        let taken = Taken {
            request: CheckpointRequest { label: None, kind: CheckpointKind::BeforeRollback },
            at_ms,
            state: left.state.clone(),
            disks,
            staged: Arc::clone(&left.staged),
            timing,
            since,
            moving,
        };
        wait_for(&self.submit(taken))
    }

    /// Puts the present back from the copies of its frames, which are still in memory, and from the store. If that
    /// fails as well, the present is at least kept as a checkpoint, unless it was just that which failed.
    /// The answer is the error to report.
    fn take_back(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        left: &Left,
        error: Error,
        may_keep: bool,
    ) -> Error {
        let to = target.record.name.clone();
        let source = Box::new(error);
        let back = self.put_copies(machine, left);
        let answer = match back {
            Ok(()) => Error::Reverted { target: to, current: None, source },
            Err(second) => {
                let timing = CheckpointTiming::default();
                let kept = may_keep
                    && machine.sync_state(&left.state).is_ok()
                    && self
                        .disk_drafts(machine, &left.state)
                        .and_then(|disks| {
                            self.keep_present(left, disks, now_ms(), timing, Instant::now(), None)
                        })
                        .is_ok();
                if !kept {
                    tracing::error!(machine = self.name, "the present of a rollback that failed is lost");
                }
                let position = self.position();
                let record = position.map(|position| self.store.catalogue().checkpoint(position.checkpoint));
                let present = record.and_then(Result::ok).map_or_else(String::new, |record| record.name);
                Error::RevertFailed { target: to, current: present, source, second: Box::new(second) }
            }
        };
        // What the memory holds is not certain any more.
        self.dirty.note_all();
        answer
    }

    fn put_copies(&mut self, machine: &mut dyn Machine, left: &Left) -> Result<()> {
        machine.pause()?;
        let mut found = PageSet::empty(&self.layout);
        self.dirty.collect(machine, &mut found)?;
        found.union(&left.frames);
        let mut copied = PageSet::empty(&self.layout);
        for (part, frame) in latest(&left.staged, &self.layout) {
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
            copied.insert_index(index);
        }
        let stand = self.pipeline.stand();
        let rest = found.indices().filter(|index| !copied.contains_index(*index));
        let rest = rest.filter_map(|index| usize::try_from(index).ok());
        Put::new(rest.map(|index| (index, stand.map.get(index)))).write(
            &self.store,
            &Ready::new(),
            machine,
            &self.layout,
        )?;
        machine.apply_state(&left.state, ClockPolicy::StandStill)?;
        run_on(machine, left.was_running, &mut 0).map_err(Error::Resume)
    }
}
