use std::time::Instant;

use retrovisor_guest::{Gfn, Machine, PAGE_SIZE, PageContent, PageSet};

use super::engine::Recorder;
use super::put::Put;
use super::report::{RollbackReport, RollbackRequest, RollbackTiming};
use super::stand::Stand;
use crate::catalogue::{Durability, NewOperation, OperationKind, OperationStatus, Position};
use crate::clock::since_us;
use crate::content::ContentRef;
use crate::error::Result;
use crate::id::CheckpointId;
use crate::page_map::PageMap;

/// Frames between two reports of progress.
const TELL_PAGES: u64 = 1 << 12;

impl Recorder {
    /// Puts a checkpoint into a machine of which nothing is known (a new process, a second machine): compares every
    /// frame and writes those that differ. Nothing of the machine's present is kept. It stays paused: resume it.
    /// When it fails, the machine stays paused and must be restored before it may run.
    pub fn restore(
        &mut self,
        machine: &mut dyn Machine,
        target: CheckpointId,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        self.check(machine)?;
        machine.capabilities().check_clock(request.clock)?;
        self.drain(machine);
        let start = Instant::now();
        let target = self.target(machine, target)?;
        let mut timing = RollbackTiming { prefetch_us: since_us(start), ..RollbackTiming::default() };
        let catalogue = self.store.catalogue();
        let here = Position { timeline: target.record.timeline, checkpoint: target.record.id };
        // At the end of a timeline of its own, the machine goes on in it: this is how it comes back after a crash.
        let timeline =
            (target.record.machine == self.machine && catalogue.is_tip(here)?).then_some(here.timeline);
        let operation = catalogue.begin(&NewOperation {
            machine: self.machine,
            kind: OperationKind::Restore,
            status: OperationStatus::Started,
            before: self.position(),
            after: Some(here),
            undoes: None,
            detail: &request.detail,
        })?;

        let start = Instant::now();
        machine.pause()?;
        timing.stop_us = since_us(start);
        self.dirty.note_all();
        let find = Instant::now();
        // Whatever was written before does not matter: every frame is looked at below.
        machine.take_dirty(&mut PageSet::empty(&self.layout))?;
        timing.find_us = since_us(find);

        let write = Instant::now();
        let pages_written = self.fill(machine, &target.map, &mut |_, _| Ok(()))?;
        let (state, blocks_written) = target.disks.go_from_anywhere(&self.store, machine, &target.state)?;
        timing.write_us = since_us(write);

        let apply = Instant::now();
        machine.apply_state(&state, request.clock)?;
        timing.apply_us = since_us(apply);
        let note = Instant::now();
        let position =
            catalogue.finish(operation, self.machine, target.record.id, timeline, Durability::Full)?;
        timing.note_us = since_us(note);
        timing.rollback_us = since_us(start);
        let operation = catalogue.operation(operation)?;
        self.pipeline.set_stand(Stand::at(&self.store, position)?);
        self.disks.forget();
        // The frames are what the target has; other consumers have to look at all of them.
        self.dirty.take(self.own);
        Ok(RollbackReport {
            present: None,
            target: target.record,
            timeline: position.timeline,
            new_timeline: timeline.is_none(),
            pages_written,
            blocks_written,
            timing,
            operation,
        })
    }

    /// Looks at every frame of a machine that stands still, and writes those that are not as in `map`. Tells how many
    /// were looked at, and how many there are. Answers how many were written.
    pub(super) fn fill(
        &self,
        machine: &mut dyn Machine,
        map: &PageMap,
        tell: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<u64> {
        let put = Put::new(map.iter().enumerate());
        let (mut pages_seen, mut pages_written) = (0, 0);
        let mut found = [0; PAGE_SIZE];
        put.each(&self.store, |index, content, page| {
            if pages_seen % TELL_PAGES == 0 {
                tell(pages_seen, put.pages())?;
            }
            pages_seen += 1;
            let gfn = self.layout.gfn(index as u64).unwrap_or(Gfn(0));
            let view = machine.memory();
            let is_there = match page {
                // To read a frame of which nothing is there would take memory for it, only to be overwritten.
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
