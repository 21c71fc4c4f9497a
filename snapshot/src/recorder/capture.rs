use std::time::Instant;

use retrovisor_guest::{Machine, MachineError, PageSet, RunState};

use super::engine::Recorder;
use super::report::CheckpointTiming;
use super::staging::{CHUNK, Staged};
use crate::clock::since_us;
use crate::error::Result;

/// Chunks reserved for the pause beyond what is expected.
const SPARE_CHUNKS: usize = 2;

/// A capture that is not complete yet.
pub(super) struct OpenCapture {
    /// Copied frames, in the order of copying: later ones override earlier ones.
    pub(super) staged: Vec<Staged>,
    /// Frames that are still to be copied, in the pause.
    pub(super) late: PageSet,
    /// Whether copied frames were submitted already.
    pub(super) is_early: bool,
    /// Memory for the frames that are found in the pause.
    found: PageSet,
}

/// What copying does when the staging memory is used up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    /// Submits what is copied and waits for the storing thread: the guest runs.
    Wait,
    /// Allocates beyond the budget: the guest is paused.
    Allocate,
}

impl Recorder {
    /// Begins a capture: copies dirty frames while the guest runs, if there are at least `pages_min`. Frames that it
    /// writes meanwhile are dirty again and copied once more, in rounds, until few are left. Then waits until there is
    /// staging memory for what the pause will copy.
    pub(super) fn begin_capture(
        &mut self,
        machine: &mut dyn Machine,
        timing: &mut CheckpointTiming,
        pages_min: u64,
    ) -> Result<OpenCapture> {
        let start = Instant::now();
        let mut capture = OpenCapture {
            staged: Vec::new(),
            late: self.dirty.written(self.own).clone(),
            is_early: false,
            found: PageSet::empty(&self.layout),
        };
        if capture.late.len().max(self.last_dirty_pages) >= pages_min {
            // To wait for memory between two rounds would give the guest time to write everything again.
            let half = self.pool.chunks_max() / 2;
            let expected = capture.late.len().max(self.last_dirty_pages);
            let expected = usize::try_from(expected).unwrap_or(usize::MAX).div_ceil(CHUNK);
            self.pool.wait_until_out(half - expected.min(half));
            let copied = self.precopy(machine, &mut capture, pages_min);
            timing.precopy_us = since_us(start);
            if let Err(error) = copied {
                self.abandon(&capture);
                return Err(error);
            }
        }
        self.reserve_staging(&mut capture);
        Ok(capture)
    }

    fn precopy(
        &mut self,
        machine: &mut dyn Machine,
        capture: &mut OpenCapture,
        pages_min: u64,
    ) -> Result<()> {
        self.dirty.collect(machine, &mut capture.found)?;
        capture.late.union(&capture.found);
        let mut left = capture.late.len();
        for _ in 0..self.settings.precopy_rounds_max {
            // Another round costs more than copying so few frames in the pause.
            if left < pages_min.clamp(64, 512) {
                break;
            }
            self.stage(machine, capture, self.pool.chunks_max() / 2, WhenFull::Wait)?;
            self.dirty.collect(machine, &mut capture.found)?;
            std::mem::swap(&mut capture.late, &mut capture.found);
            let before = std::mem::replace(&mut left, capture.late.len());
            if left > before - before / 4 {
                break;
            }
        }
        Ok(())
    }

    /// Waits for staging memory for the pause. If this capture itself holds too much of it, that is submitted early.
    fn reserve_staging(&self, capture: &mut OpenCapture) {
        let expected = capture.late.len().max(self.last_copied_pages);
        let expected = usize::try_from(expected + expected / 4).unwrap_or(usize::MAX);
        let chunks = (expected.div_ceil(CHUNK) + SPARE_CHUNKS).min(self.pool.chunks_max() / 2);
        let held: usize = capture.staged.iter().map(Staged::chunks).sum();
        if held + chunks > self.pool.chunks_max() {
            self.submit_early(capture);
        }
        self.pool.reserve(chunks);
    }

    /// Submits what is copied so far.
    pub(super) fn submit_early(&self, capture: &mut OpenCapture) {
        capture.is_early = true;
        self.pipeline.early(std::mem::take(&mut capture.staged));
    }

    /// Copies the frames of `late`. If staging memory runs out while the guest runs, what is copied is submitted
    /// early.
    fn stage(
        &self,
        machine: &dyn Machine,
        capture: &mut OpenCapture,
        chunks_max: usize,
        when_full: WhenFull,
    ) -> Result<()> {
        let frames = usize::try_from(capture.late.len()).unwrap_or(0);
        let mut staged = Staged::new(&self.pool, frames);
        let mut is_early = false;
        let earlier = &mut capture.staged;
        staged.fill(machine.memory(), &capture.late, |full| {
            self.pool.try_take(chunks_max).unwrap_or_else(|| match when_full {
                WhenFull::Allocate => self.pool.take_over_budget(),
                WhenFull::Wait => {
                    let mut parts = std::mem::take(earlier);
                    parts.push(full.split());
                    is_early = true;
                    self.pipeline.early(parts);
                    self.pool.take(chunks_max)
                }
            })
        })?;
        capture.is_early |= is_early;
        capture.staged.push(staged);
        Ok(())
    }

    /// Pauses the guest, finds the frames that are dirty since, and copies them. If it fails, they stay dirty.
    pub(super) fn pause_and_copy(
        &mut self,
        machine: &mut dyn Machine,
        capture: &mut OpenCapture,
        timing: &mut CheckpointTiming,
    ) -> Result<()> {
        let start = Instant::now();
        machine.pause()?;
        timing.stop_us = since_us(start);
        let start = Instant::now();
        self.dirty.collect(machine, &mut capture.found)?;
        capture.late.union(&capture.found);
        timing.find_us = since_us(start);
        let start = Instant::now();
        self.stage(machine, capture, self.pool.chunks_max(), WhenFull::Allocate)?;
        timing.copy_us = since_us(start);
        timing.copied_pages = capture.late.len();
        Ok(())
    }

    /// Abandons a capture: what was submitted early is discarded.
    pub(super) fn abandon(&self, capture: &OpenCapture) {
        if capture.is_early {
            self.pipeline.abandon_early();
        }
    }
}

/// Whether the guest runs, and is to be resumed after a pause. Of a machine that does not say, nobody knows: it is not
/// paused then.
pub(super) fn is_running(machine: &mut dyn Machine) -> Result<bool, MachineError> {
    match machine.run_state() {
        RunState::Running => Ok(true),
        RunState::Paused | RunState::PoweredOff | RunState::Panicked => Ok(false),
        RunState::Gone => Err(MachineError::Gone {
            machine: machine.identity().name.clone(),
            reason: "it does not say whether it runs".into(),
        }),
    }
}

/// Resumes the guest if it ran before.
pub(super) fn resume_if_running(
    machine: &mut dyn Machine,
    was_running: bool,
    resume_us: &mut u64,
) -> Result<(), MachineError> {
    let start = Instant::now();
    let resumed = if was_running { machine.resume() } else { Ok(()) };
    *resume_us = since_us(start);
    if let Err(error) = &resumed {
        tracing::error!(machine = %machine.identity().name, %error, "the machine could not be resumed");
    }
    resumed
}
