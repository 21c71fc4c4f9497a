use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use retrovisor_guest::{Machine, MachineState, RunState};

use super::capture::run_on;
use super::engine::Recorder;
use super::kept_disks::release;
use super::pending::{Pending, Stored};
use super::report::{CheckpointReport, CheckpointRequest, CheckpointTiming};
use super::staging::Staged;
use super::task::{Capture, Moving};
use crate::clock::{now_ms, since_us};
use crate::disk::DiskDraft;
use crate::error::{Error, Result};

/// Longest label, in bytes.
const LABEL_MAX: usize = 200;

/// A captured instant, before it is handed over to be stored.
pub(super) struct Taken {
    pub(super) request: CheckpointRequest,
    pub(super) at_ms: i64,
    pub(super) state: MachineState,
    /// What changed on its disks; found out when it is handed over.
    pub(super) disks: Vec<DiskDraft>,
    pub(super) staged: Arc<Vec<Staged>>,
    pub(super) timing: CheckpointTiming,
    /// When the guest ran on.
    pub(super) since: Instant,
    pub(super) moving: Option<Moving>,
}

impl Recorder {
    /// Takes a checkpoint, and waits until it is durable. The guest stands still only while its dirty frames are copied
    /// and its state is captured, and never because of a failure here: what could not be stored is in the next
    /// checkpoint. A machine that was paused stays paused.
    pub fn checkpoint(
        &mut self,
        machine: &mut dyn Machine,
        request: &CheckpointRequest,
    ) -> Result<CheckpointReport> {
        let report = self.capture(machine, request)?.wait();
        // A failure gives the frames back and releases the state, also if nobody captures again.
        self.settle_until(machine, usize::MAX);
        report
    }

    /// Captures a checkpoint and comes back while it is being made durable. Checkpoints that wait share one sync and
    /// one transaction. If too many wait, or their pages fill the staging memory, this waits for them before it pauses
    /// the guest. When one fails, those behind it fail as well, and the next capture has the frames of all of them.
    pub fn capture(&mut self, machine: &mut dyn Machine, request: &CheckpointRequest) -> Result<Pending> {
        check_label(request.label.as_deref())?;
        self.check(machine)?;
        // Not to find out only later.
        self.store.must_be_writable()?;
        self.settle_until(machine, self.settings.pending_checkpoints_max.saturating_sub(1));
        self.release_old_disks(machine);
        let mut timing = CheckpointTiming::default();
        let mut draft = self.draft(machine, &mut timing, self.settings.precopy_pages_min)?;

        let was_running = machine.run_state() == RunState::Running;
        let at_ms = now_ms();
        let start = Instant::now();
        let captured = self.freeze(machine, &mut draft, &mut timing).and_then(|()| {
            let start = Instant::now();
            let state = machine.capture_state()?;
            timing.state_us = since_us(start);
            Ok(state)
        });
        let resumed = run_on(machine, was_running, &mut timing.resume_us);
        timing.pause_us = since_us(start);

        let since = Instant::now();
        let state = match captured {
            Ok(state) => state,
            Err(error) => {
                self.abandon(&draft);
                return Err(error);
            }
        };
        let is_early = draft.is_early;
        let staged = Arc::new(draft.staged);
        let request = request.clone();
        let disks = Vec::new();
        let taken = Taken { request, at_ms, state, disks, staged, timing, since, moving: None };
        let outcome = self.hand_over(machine, taken, is_early)?;
        Ok(Pending { store: Arc::clone(&self.store), timing, outcome, resumed })
    }

    /// Makes what the driver set aside durable, and hands over what was captured.
    pub(super) fn hand_over(
        &mut self,
        machine: &mut dyn Machine,
        taken: Taken,
        is_early: bool,
    ) -> Result<Receiver<Result<Stored>>> {
        let ready = machine.sync_state(&taken.state).map_err(Error::from);
        match ready.and_then(|()| self.disk_drafts(machine, &taken.state)) {
            Ok(disks) => Ok(self.submit(Taken { disks, ..taken })),
            Err(error) => {
                release(machine, &taken.state);
                if is_early {
                    self.pipeline.give_up();
                }
                Err(error)
            }
        }
    }

    /// Hands over what was captured. The dirty frames are the checkpoint's from here on.
    pub(super) fn submit(&mut self, taken: Taken) -> Receiver<Result<Stored>> {
        let Taken { request, at_ms, state, disks, staged, timing, since, moving } = taken;
        let dirty = self.dirty.take(self.own);
        self.last_dirty_pages = dirty.len();
        self.last_copied_pages = timing.copied_pages;
        let (outcome, told) = bounded(1);
        self.pipeline.submit(Box::new(Capture {
            generation: 0,
            request,
            at_ms,
            state,
            disks,
            staged,
            dirty,
            timing,
            since,
            moving,
            outcome,
        }));
        told
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
