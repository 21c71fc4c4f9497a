use std::time::Instant;

use retrovisor_guest::{Machine, MachineError, MachineState, PageSet};

use super::engine::Recorder;
use super::report::CheckpointTiming;
use super::staging::StagedContent;
use crate::clock::since_us;
use crate::content::ContentRef;
use crate::error::Result;
use crate::intake::Intake;
use crate::page_map::PageMap;

/// Frames staged at a time while the guest runs: 64 MiB.
const BATCH: usize = 1 << 14;

/// A checkpoint on its way.
pub(super) struct Draft {
    /// What stands in every frame, as far as it is known.
    pub(super) map: PageMap,
    /// The frames of which it is not known: they are copied while the guest stands still.
    pub(super) late: PageSet,
}

impl Recorder {
    /// Begins a checkpoint.
    pub(super) fn draft(&self) -> Draft {
        Draft { map: (*self.stand.map).clone(), late: self.unsaved.clone() }
    }

    /// Copies and stores the dirty frames while the guest still runs. Those that it writes meanwhile are dirty again,
    /// and are copied once more when it stands still: only they are left to be done then.
    pub(super) fn precopy(
        &mut self,
        machine: &mut dyn Machine,
        intake: &mut Intake,
        draft: &mut Draft,
    ) -> Result<()> {
        machine.take_dirty(&mut self.unsaved)?;
        let indices: Vec<u64> = self.unsaved.indices().collect();
        for batch in indices.chunks(BATCH) {
            self.staging.fill(machine.memory(), batch.iter().copied())?;
            let names = intake.add(&self.store.key, self.store.catalogue(), &self.staging.data())?;
            self.absorb(&names, draft);
        }
        self.staging.clear();
        draft.late.clear();
        intake.flush()
    }

    /// Pauses, finds the frames that are dirty since, and copies them aside. Whatever fails, they stay in `unsaved`.
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
        let found = machine.take_dirty(&mut draft.late);
        self.unsaved.union(&draft.late);
        found?;
        timing.find_us = since_us(start);
        let start = Instant::now();
        self.staging.fill(machine.memory(), draft.late.indices())?;
        timing.copy_us = since_us(start);
        Ok(())
    }

    /// Notes what stands in the staged frames; `names` are those of the pages that hold data.
    pub(super) fn absorb(&self, names: &[ContentRef], draft: &mut Draft) {
        for frame in self.staging.frames() {
            let content = match frame.content {
                StagedContent::Zero => ContentRef::Zero,
                StagedContent::Removed => ContentRef::Removed,
                StagedContent::Data(at) => names[at],
            };
            draft.map.set(frame.index, content);
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

/// Lets go of what the driver set aside for a state that was not stored.
pub(super) fn release(machine: &mut dyn Machine, state: &MachineState) {
    if let Err(error) = machine.release_state(state) {
        tracing::warn!(%error, "what the driver set aside for a checkpoint that failed could not be released");
    }
}
