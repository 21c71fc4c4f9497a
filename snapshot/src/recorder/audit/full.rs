use std::time::Instant;

use retrovisor_guest::{Machine, PageSet};

use super::compare::compare;
use super::outcome::note;
use super::report::{AuditReport, AuditTiming};
use super::sample::Sample;
use crate::clock::{now_ms, since_us};
use crate::error::{Error, Result};
use crate::page_map::PageMap;
use crate::recorder::capture::{is_running, resume_if_running};
use crate::recorder::engine::Recorder;

/// Frames that are copied in the first pause: 4 MiB.
const PIECE_MIN: usize = 1 << 10;
/// Frames that are copied in one pause, at most: 64 MiB.
const PIECE_MAX: usize = 1 << 14;
/// Frames that a report names, at most.
const NAMED_MAX: usize = 64;

/// The part of the memory that is copied next.
struct Piece {
    first: u64,
    frames_max: usize,
}

impl Recorder {
    /// Compares every frame that was not written since the newest checkpoint with what that checkpoint says. The memory
    /// is copied piece by piece, each in a pause of its own, and compared while the guest runs. What it finds is
    /// recorded as what the audit of a checkpoint finds; after a mismatch the next checkpoint looks at every frame.
    ///
    /// Of the disks, every block of the newest checkpoint's state is compared, without a pause.
    pub fn audit(&mut self, machine: &mut dyn Machine) -> Result<AuditReport> {
        self.check(machine)?;
        self.store.must_be_writable()?;
        self.record_pending_failure();
        self.drain(machine);
        let (begun, since_ms) = (Instant::now(), now_ms());
        let baseline = self.pipeline.baseline();
        let position = baseline.position.ok_or_else(|| Error::NotFound {
            what: "checkpoint",
            name: self.name.clone(),
            help: "The audit compares with the newest one: take one first with `retrovisor checkpoint NAME`",
        })?;
        let checkpoint = self.store.catalogue().checkpoint(position.checkpoint)?;
        let newest = self.newest_sequence()?;
        let mut report = AuditReport {
            checkpoint,
            pages: self.layout.pages(),
            compared_pages: 0,
            written_pages: 0,
            mismatched_pages: 0,
            mismatches: Vec::new(),
            disks: Vec::new(),
            doubtful: None,
            timing: AuditTiming::default(),
        };
        let mut found = PageSet::empty(&self.layout);
        let mut sample =
            Sample::new(usize::try_from(self.layout.pages()).unwrap_or(usize::MAX).min(PIECE_MAX));
        let mut piece = Piece { first: 0, frames_max: PIECE_MIN };
        while piece.first < self.layout.pages() {
            sample.clear();
            self.copy_piece(machine, &baseline.map, &mut sample, &mut found, &mut piece, &mut report)?;
            let compared = compare(&self.store, &baseline.map, &sample)?;
            report.compared_pages += (compared.same.len() + compared.different.len()) as u64;
            report.mismatched_pages += compared.different.len() as u64;
            let more = NAMED_MAX - report.mismatches.len();
            let named = compared.different.iter().filter_map(|index| self.layout.gfn(*index));
            report.mismatches.extend(named.take(more));
            let shared = self.sampler.shared();
            let doubtful = note(&self.store, self.machine, &self.layout, &shared, &compared, newest);
            report.add_doubtful(doubtful);
        }
        if report.mismatched_pages > 0 {
            self.dirty.note_all();
        }
        self.sampler.state().audited(since_ms, report.compared_pages);
        self.audit_disks(machine, &baseline, newest, &mut report)?;
        report.timing.total_us = since_us(begun);
        Ok(report)
    }

    /// Copies the next frames in a pause, but those that were written since the checkpoint.
    fn copy_piece(
        &mut self,
        machine: &mut dyn Machine,
        map: &PageMap,
        sample: &mut Sample,
        found: &mut PageSet,
        piece: &mut Piece,
        report: &mut AuditReport,
    ) -> Result<()> {
        let was_running = is_running(machine)?;
        let start = Instant::now();
        machine.pause()?;
        let collected = self.dirty.collect(machine, found);
        let find_us = since_us(start);
        let copied = collected.map_err(Error::from).and_then(|()| {
            let (start, view) = (Instant::now(), machine.memory());
            let written = self.dirty.written(self.own);
            while piece.first < self.layout.pages() && sample.len() < piece.frames_max && !sample.is_full() {
                let index = piece.first;
                piece.first += 1;
                if written.contains_index(index) {
                    report.written_pages += 1;
                    continue;
                }
                let content = usize::try_from(index).map(|index| map.get(index)).ok();
                sample.copy(view, index, content.is_none_or(|content| content.stored().is_none()))?;
            }
            Ok(since_us(start))
        });
        let resumed = resume_if_running(machine, was_running, &mut 0);
        let pause_us = since_us(start);
        let timing = &mut report.timing;
        (timing.pauses, timing.pause_us) = (timing.pauses + 1, timing.pause_us + pause_us);
        timing.pause_max_us = timing.pause_max_us.max(pause_us);
        // A pause whose cost is finding what was written can be used to copy more.
        if copied? < find_us {
            piece.frames_max = (piece.frames_max * 2).min(PIECE_MAX);
        }
        resumed.map_err(Error::Resume)
    }
}
