use retrovisor_guest::{ClockPolicy, Machine};

use super::capture::run_on;
use super::engine::Recorder;
use super::put::{Put, Ready};
use super::rollback::Present;
use super::target::Target;
use crate::error::Error;

impl Recorder {
    /// Undoes a half-done journey after `error`. The answer is the error to report.
    pub(super) fn put_back(
        &mut self,
        machine: &mut dyn Machine,
        target: &Target,
        present: &Present,
        error: Error,
        was_running: bool,
    ) -> Error {
        // What the memory holds now is not certain: the next checkpoint looks at every frame.
        self.dirty.note_all();
        let source = Box::new(error);
        let id = present.position.checkpoint;
        let name = self.store.catalogue().checkpoint(id).map_or_else(|_| id.to_string(), |c| c.name);
        let to = target.record.name.clone();
        let back = Put::difference(&target.map, &self.pipeline.stand().map)
            .write(&self.store, &Ready::new(), machine, &self.layout)
            .and_then(|()| Ok(machine.apply_state(&present.state, ClockPolicy::StandStill)?))
            .and_then(|()| run_on(machine, was_running, &mut 0).map_err(Error::Resume));
        if let Err(second) = back {
            return Error::RevertFailed { target: to, current: name, source, second: Box::new(second) };
        }
        if let Err(error) = self.store.catalogue().fail(present.operation, &source.to_string()) {
            tracing::warn!(%error, "a failed rollback could not be noted");
        }
        Error::Reverted { target: to, current: Some(name), source }
    }
}
