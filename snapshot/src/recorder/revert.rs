//! What happens when a rollback fails: the machine is reverted, and the operation is marked as failed.

use retrovisor_guest::{ClockPolicy, Machine};

use super::capture::resume_if_running;
use super::engine::Recorder;
use super::page_plan::{LoadedPages, PagePlan};
use super::pending_failure::PendingFailure;
use super::rollback::Current;
use super::target::Target;
use crate::error::Error;

impl Recorder {
    /// Reverts a rollback that failed with `error` half way, to the current state as it is stored. Returns the error
    /// to report.
    pub(super) fn revert_from_store(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        current: &Current,
        error: Error,
        was_running: bool,
    ) -> Error {
        // It is not certain what the memory holds now: the next checkpoint reads every frame.
        self.dirty.note_all();
        let source = Box::new(error);
        let id = current.position.checkpoint;
        let name = self.store.catalogue().checkpoint(id).map_or_else(|_| id.to_string(), |c| c.name);
        let target_name = target.record.name.clone();
        let reverted = PagePlan::difference(&target.map, &self.pipeline.baseline().map)
            .write(&self.store, &LoadedPages::new(), machine, &self.layout)
            .and_then(|()| Ok(machine.apply_state(&current.state, ClockPolicy::StandStill)?))
            .and_then(|()| resume_if_running(machine, was_running, &mut 0).map_err(Error::Resume));
        match reverted {
            Ok(()) => Error::Reverted { target: target_name, current: Some(name), source },
            Err(second) => {
                Error::RevertFailed { target: target_name, current: name, source, second: Box::new(second) }
            }
        }
    }

    /// Marks the machine's operation that is started, if there is one, as failed. If the catalogue cannot be written
    /// now, this is done before the next capture or move.
    pub(super) fn record_failure(&mut self, why: &str, is_memory_whole: bool) {
        if !self.store.is_writable() {
            return;
        }
        let recorded = self.store.catalogue().fail_rollbacks(self.machine, why, is_memory_whole);
        self.pending_failure = match recorded {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(machine = self.name, %error, "a failed rollback could not be recorded yet");
                Some(PendingFailure { why: why.to_owned(), is_memory_whole })
            }
        };
    }

    /// Records a failure that could not be recorded before.
    pub(super) fn record_pending_failure(&mut self) {
        if let Some(PendingFailure { why, is_memory_whole }) = self.pending_failure.take() {
            self.record_failure(&why, is_memory_whole);
        }
    }
}

impl Drop for Recorder {
    /// Waits until everything captured is stored. A move that was under way (a driver panicked) is marked as failed,
    /// and the memory as half written.
    fn drop(&mut self) {
        self.pipeline.finish();
        if self.is_moving {
            self.record_failure("the recorder ended before it was done", false);
        }
        self.record_pending_failure();
    }
}
