use std::time::Instant;

use retrovisor_guest::{Machine, MachineError, PageSet};

use super::engine::Recorder;
use super::report::CheckpointTiming;
use super::staging::{CHUNK, Staged};
use crate::clock::since_us;
use crate::error::Result;

/// Chunks that are kept ready for the pause beyond what is expected.
const SPARE_CHUNKS: usize = 2;

/// A capture on its way.
pub(super) struct Draft {
    /// Frames copied, in order of copying: later ones override earlier ones.
    pub(super) staged: Vec<Staged>,
    /// Frames that are still to be copied, when the guest stands still.
    pub(super) late: PageSet,
    /// Whether copied frames went ahead to be stored.
    pub(super) is_early: bool,
    /// For frames that are found in the pause: memory that is there already.
    found: PageSet,
}

impl Recorder {
    /// Begins a capture: copies dirty frames while the guest still runs, if there are at least so many that it is
    /// worth it.
    /// Those that it writes meanwhile are dirty again and are copied once more, in rounds, until few are left.
    /// Then waits until there is room for what the pause will copy.
    pub(super) fn draft(
        &mut self,
        machine: &mut dyn Machine,
        timing: &mut CheckpointTiming,
        least: u64,
    ) -> Result<Draft> {
        let start = Instant::now();
        let mut draft = Draft {
            staged: Vec::new(),
            late: self.dirty.written(self.own).clone(),
            is_early: false,
            found: PageSet::empty(&self.layout),
        };
        if draft.late.len().max(self.last_dirty_pages) >= least {
            // Waiting for memory in the middle of it would give the guest time to write everything anew.
            let half = self.pool.chunks_max() / 2;
            let expected = draft.late.len().max(self.last_dirty_pages);
            let expected = usize::try_from(expected).unwrap_or(usize::MAX).div_ceil(CHUNK);
            self.pool.wait_until_out(half - expected.min(half));
            let copied = self.rounds(machine, &mut draft, least);
            timing.precopy_us = since_us(start);
            if let Err(error) = copied {
                self.abandon(&draft);
                return Err(error);
            }
        }
        self.make_room(&mut draft);
        Ok(draft)
    }

    fn rounds(&mut self, machine: &mut dyn Machine, draft: &mut Draft, least: u64) -> Result<()> {
        self.dirty.collect(machine, &mut draft.found)?;
        draft.late.union(&draft.found);
        let mut left = draft.late.len();
        for _ in 0..self.settings.precopy_rounds_max {
            // What a pause copies in the time of looking once more is not worth another round.
            if left < least.clamp(64, 512) {
                break;
            }
            self.stage(machine, draft, self.pool.chunks_max() / 2)?;
            self.dirty.collect(machine, &mut draft.found)?;
            std::mem::swap(&mut draft.late, &mut draft.found);
            let before = std::mem::replace(&mut left, draft.late.len());
            if left > before - before / 4 {
                break;
            }
        }
        Ok(())
    }

    /// Waits for staging memory for the pause. If this capture itself holds too much of it, that goes ahead.
    fn make_room(&self, draft: &mut Draft) {
        let expected = draft.late.len().max(self.last_copied_pages);
        let expected = usize::try_from(expected + expected / 4).unwrap_or(usize::MAX);
        let chunks = (expected.div_ceil(CHUNK) + SPARE_CHUNKS).min(self.pool.chunks_max() / 2);
        let held: usize = draft.staged.iter().map(Staged::chunks).sum();
        if held + chunks > self.pool.chunks_max() {
            self.send_ahead(draft);
        }
        self.pool.reserve(chunks);
    }

    /// Hands over what is copied so far.
    pub(super) fn send_ahead(&self, draft: &mut Draft) {
        draft.is_early = true;
        self.pipeline.early(std::mem::take(&mut draft.staged));
    }

    /// Copies the frames of `late`. If staging memory gets short, what is copied goes ahead to be stored.
    fn stage(&self, machine: &dyn Machine, draft: &mut Draft, chunks_max: usize) -> Result<()> {
        let frames = usize::try_from(draft.late.len()).unwrap_or(0);
        let mut staged = Staged::new(&self.pool, frames);
        let mut ahead = false;
        let earlier = &mut draft.staged;
        staged.fill(machine.memory(), &draft.late, |full| {
            self.pool.try_take(chunks_max).unwrap_or_else(|| {
                let mut parts = std::mem::take(earlier);
                parts.push(full.split());
                ahead = true;
                self.pipeline.early(parts);
                self.pool.take(chunks_max)
            })
        })?;
        draft.is_early |= ahead;
        draft.staged.push(staged);
        Ok(())
    }

    /// Pauses, finds the frames that are dirty since, and copies them aside. Whatever fails, they stay dirty.
    pub(super) fn freeze(
        &mut self,
        machine: &mut dyn Machine,
        draft: &mut Draft,
        timing: &mut CheckpointTiming,
    ) -> Result<()> {
        let start = Instant::now();
        machine.pause()?;
        timing.stop_us = since_us(start);
        let start = Instant::now();
        self.dirty.collect(machine, &mut draft.found)?;
        draft.late.union(&draft.found);
        timing.find_us = since_us(start);
        let start = Instant::now();
        self.stage(machine, draft, self.pool.chunks_max())?;
        timing.copy_us = since_us(start);
        timing.copied_pages = draft.late.len();
        Ok(())
    }

    /// Gives a capture up: what went ahead of it is forgotten.
    pub(super) fn abandon(&self, draft: &Draft) {
        if draft.is_early {
            self.pipeline.give_up();
        }
    }
}

/// Lets the guest run on if it ran before.
pub(super) fn run_on(
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
