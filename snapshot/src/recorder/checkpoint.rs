use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use retrovisor_guest::{Machine, PageSet};

use super::capture::{is_running, resume_if_running};
use super::engine::Recorder;
use super::pending::PendingCheckpoint;
use super::report::{CheckpointReport, CheckpointRequest, CheckpointTiming};
use super::retained_disks::release;
use super::task::{Captured, Job, Outcome};
use crate::clock::{now_ms, since_us};
use crate::error::{Error, Result};

/// Longest label, in bytes.
const LABEL_MAX: usize = 200;

impl Recorder {
    /// Takes a checkpoint and waits until it is durable. The guest is paused only while its dirty frames are copied
    /// and its state is captured; it is resumed also if that fails, and what could not be stored is in the next
    /// checkpoint. A machine that was paused stays paused.
    pub fn checkpoint(
        &mut self,
        machine: &mut dyn Machine,
        request: &CheckpointRequest,
    ) -> Result<CheckpointReport> {
        let report = self.capture(machine, request)?.wait();
        // A failure returns the frames and releases the state, even if there is no further capture.
        self.collect_outcomes(machine, usize::MAX);
        report
    }

    /// Captures a checkpoint and returns while it is made durable. Checkpoints that wait share one sync and one
    /// transaction. If too many wait, or their pages fill the staging memory, this waits before it pauses the guest.
    /// If one fails, those after it fail as well, and the next capture has the frames of all of them.
    pub fn capture(
        &mut self,
        machine: &mut dyn Machine,
        request: &CheckpointRequest,
    ) -> Result<PendingCheckpoint> {
        check_label(request.label.as_deref())?;
        self.check(machine)?;
        self.store.must_have_room()?;
        self.record_pending_failure();
        self.collect_outcomes(machine, self.settings.pending_checkpoints_max.saturating_sub(1));
        self.release_old_disks(machine);
        machine.check_devices()?;
        let mut timing = CheckpointTiming::default();
        let mut capture = self.begin_capture(machine, &mut timing, self.settings.precopy_pages_min)?;
        let mut sample = self.sampler.open(&self.pipeline.baseline().map);

        let was_running = is_running(machine).inspect_err(|_| self.abandon(&capture))?;
        let at_ms = now_ms();
        let start = Instant::now();
        let captured = self.pause_and_copy(machine, &mut capture, &mut timing).and_then(|()| {
            if let Some(sample) = &mut sample {
                let start = Instant::now();
                sample.fill(machine.memory(), &capture.late);
                timing.audit_us = since_us(start);
            }
            let start = Instant::now();
            let state = machine.capture_state()?;
            timing.state_us = since_us(start);
            Ok(state)
        });
        let resumed = resume_if_running(machine, was_running, &mut timing.resume_us);
        timing.pause_us = since_us(start);

        let since = Instant::now();
        let state = match captured {
            Ok(state) => state,
            Err(error) => {
                self.abandon(&capture);
                return Err(error);
            }
        };
        let is_early = capture.is_early;
        let sampled = sample.map(|sample| self.sampler.close(sample, capture.late));
        let captured = Captured {
            request: request.clone(),
            at_ms,
            state,
            disks: Vec::new(),
            staged: Arc::new(capture.staged),
            dirty: PageSet::empty(&self.layout),
            timing,
            since,
            rollback: None,
            sampled,
        };
        let outcome = self.sync_and_submit(machine, captured, is_early)?;
        Ok(PendingCheckpoint { store: Arc::clone(&self.store), timing, outcome, resumed })
    }

    /// Checks that the captured state has the machine's devices, makes the disk contents that the driver retains durable,
    /// and submits the capture.
    pub(super) fn sync_and_submit(
        &mut self,
        machine: &mut dyn Machine,
        captured: Captured,
        is_early: bool,
    ) -> Result<Receiver<Outcome>> {
        let synced = machine.check_devices().and_then(|()| machine.sync_state(&captured.state));
        match synced.map_err(Error::from).and_then(|()| self.capture_disks(machine, &captured.state)) {
            Ok(mut disks) => {
                // A rollback is not audited: it waits for this checkpoint with the guest paused.
                if captured.rollback.is_none() && self.sampler.state().blocks() > 0 {
                    for disk in &mut disks {
                        disk.open_blocks(machine);
                    }
                }
                Ok(self.submit(Captured { disks, ..captured }))
            }
            Err(error) => {
                release(machine, &captured.state);
                if is_early {
                    self.pipeline.abandon_early();
                }
                Err(error)
            }
        }
    }

    /// Submits a capture to the storing thread. The dirty frames belong to it from here on.
    pub(super) fn submit(&mut self, captured: Captured) -> Receiver<Outcome> {
        let dirty = self.dirty.take(self.own);
        self.last_dirty_pages = dirty.len();
        self.last_copied_pages = captured.timing.copied_pages;
        if let Some(sampled) = &captured.sampled {
            self.sampler.go_to(sampled.to);
        }
        let (outcome, receiver) = bounded(1);
        let job = Job { captured: Captured { dirty, ..captured }, generation: 0, outcome };
        self.pipeline.submit(Box::new(job));
        receiver
    }
}

fn check_label(label: Option<&str>) -> Result<()> {
    let Some(label) = label else { return Ok(()) };
    let reserved = ["current", "latest", "last-good"];
    let fits = (1..=LABEL_MAX).contains(&label.len())
        && !label.starts_with(['-', '@'])
        && !label.chars().any(char::is_control)
        && !reserved.contains(&label);
    if fits {
        return Ok(());
    }
    let why = format!(
        "{label:?} is not usable: 1 to {LABEL_MAX} bytes, not starting with '-' or '@', none of {}",
        reserved.join(", ")
    );
    Err(Error::Invalid { what: "label", why })
}
