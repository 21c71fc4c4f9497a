use std::time::Instant;

use retrovisor_guest::{Gfn, Machine, PAGE_SIZE, PageContent, PageSet};

use super::baseline::Baseline;
use super::engine::Recorder;
use super::page_plan::PagePlan;
use super::report::{RollbackReport, RollbackRequest, RollbackTiming};
use super::target::Target;
use crate::catalogue::{Durability, NewOperation, OperationStatus, Position, RollbackKind};
use crate::clock::since_us;
use crate::content::ContentRef;
use crate::error::Result;
use crate::id::{CheckpointId, OperationId};
use crate::page_map::PageMap;

/// Frames between two reports of progress.
const REPORT_PAGES: u64 = 1 << 12;

impl Recorder {
    /// Loads a checkpoint into a machine whose memory is unknown (a new process, a second machine): compares every
    /// frame and writes those that differ. The machine's own state is not kept. It stays paused: the caller resumes it.
    ///
    /// If this fails, the machine stays paused, and it must be restored before it may run, or discarded. The operation
    /// is marked as failed; that the process is half written is recorded if [`Recorder::set_process`] named it.
    pub fn restore(
        &mut self,
        machine: &mut dyn Machine,
        target: CheckpointId,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        self.check(machine)?;
        machine.capabilities().check_clock(request.clock)?;
        self.record_pending_failure();
        self.drain(machine);
        let start = Instant::now();
        let target = self.target(machine, target)?;
        machine.check_state(&target.state)?;
        let timing = RollbackTiming { prefetch_us: since_us(start), ..RollbackTiming::default() };
        let here = Position { timeline: target.record.timeline, checkpoint: target.record.id };
        let operation = self.store.catalogue().begin(&NewOperation {
            machine: self.machine,
            kind: RollbackKind::Restore.into(),
            status: OperationStatus::Started,
            before: self.position(),
            after: Some(here),
            undoes: None,
            detail: &request.detail,
            half_written: Some(self.process.as_deref().unwrap_or_default()),
        })?;
        self.is_moving = true;
        let restored = self.restore_target(machine, target, operation, request, timing);
        self.is_moving = false;
        if let Err(error) = &restored {
            // A process without a name cannot be distinguished from the next one: the caller discards it.
            self.record_failure(&error.to_string(), self.process.is_none());
        }
        restored
    }

    fn restore_target(
        &mut self,
        machine: &mut dyn Machine,
        target: Target,
        operation: OperationId,
        request: &RollbackRequest,
        mut timing: RollbackTiming,
    ) -> Result<RollbackReport> {
        let here = Position { timeline: target.record.timeline, checkpoint: target.record.id };
        // From the tip of a timeline of its own, the machine continues it: so it does after a crash.
        let is_own_tip = target.record.machine == self.machine && self.store.catalogue().is_tip(here)?;
        let timeline = is_own_tip.then_some(here.timeline);
        let start = Instant::now();
        machine.pause()?;
        timing.stop_us = since_us(start);
        self.dirty.note_all();
        self.disks.forget();
        let find = Instant::now();
        // What was written before does not matter: every frame is compared below.
        machine.take_dirty(&mut PageSet::empty(&self.layout))?;
        timing.find_us = since_us(find);

        let write = Instant::now();
        let pages_written = self.fill(machine, &target.map, &mut |_, _| Ok(()))?;
        let (state, blocks_written) = target.disks.restore_unknown(&self.store, machine, &target.state)?;
        timing.write_us = since_us(write);

        let apply = Instant::now();
        machine.apply_state(&state, request.clock)?;
        timing.apply_us = since_us(apply);
        let note = Instant::now();
        let catalogue = self.store.catalogue();
        let position = catalogue.complete_rollback(
            operation,
            self.machine,
            target.record.id,
            timeline,
            Durability::Full,
        )?;
        timing.note_us = since_us(note);
        timing.rollback_us = since_us(start);
        let operation = catalogue.operation(operation)?;
        self.pipeline.set_baseline(Baseline::at(&self.store, position)?);
        // The frames are what the target has; other consumers have to read all of them.
        self.dirty.take(self.own);
        let newest = self.newest_sequence()?;
        self.sampler.state().reset(newest);
        Ok(RollbackReport {
            kind: RollbackKind::Restore,
            current: None,
            target: target.record,
            timeline: position.timeline,
            new_timeline: timeline.is_none(),
            pages_written,
            blocks_written,
            timing,
            operation,
        })
    }

    /// Compares every frame of a paused machine and writes those that are not as in `map`. Reports how many were
    /// compared, and how many there are. Returns how many were written.
    pub(super) fn fill(
        &self,
        machine: &mut dyn Machine,
        map: &PageMap,
        report: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<u64> {
        let plan = PagePlan::new(map.iter().enumerate());
        let (mut pages_seen, mut pages_written) = (0, 0);
        let mut found = [0; PAGE_SIZE];
        plan.each(&self.store, |index, content, page| {
            if pages_seen % REPORT_PAGES == 0 {
                report(pages_seen, plan.pages())?;
            }
            pages_seen += 1;
            let gfn = self.layout.gfn(index as u64).unwrap_or(Gfn(0));
            let view = machine.memory();
            let is_there = match page {
                // Reading an unallocated frame would allocate it, only to be overwritten.
                Some(_) if view.known_zero(gfn) => false,
                Some(page) => {
                    view.read_page(gfn, &mut found)?;
                    found == *page
                }
                None if content == ContentRef::Removed => view.removed(gfn),
                None if view.known_zero(gfn) => !view.removed(gfn),
                None => {
                    view.read_page(gfn, &mut found)?;
                    retrovisor_guest::is_zero(&found) && !view.removed(gfn)
                }
            };
            if !is_there {
                let wanted = match (page, content) {
                    (Some(page), _) => PageContent::Data(page),
                    (None, ContentRef::Removed) => PageContent::Removed,
                    (None, _) => PageContent::Zero,
                };
                machine.write_page(gfn, wanted)?;
                pages_written += 1;
            }
            Ok(())
        })?;
        Ok(pages_written)
    }
}
