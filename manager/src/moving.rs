//! Going to another checkpoint: in place, or in a new process.

use retrovisor_guest::{Machine, RunState};
use retrovisor_snapshot::{
    CheckpointId, CheckpointRecord, DesiredState, Error as StoreError, NewIncident, RollbackReport,
    RollbackRequest, image_hash,
};

use crate::actor::MachineActor;
use crate::error::ManagerError;
use crate::event::EventKind;
use crate::held_paused::HeldPaused;
use crate::lifecycle::{CommandKind, Lifecycle, PausedBy};
use crate::rollback::Rollback;

/// Where a machine goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Destination {
    Checkpoint(CheckpointId),
    Undo,
    Redo,
}

impl Destination {
    fn command(self) -> CommandKind {
        match self {
            Self::Checkpoint(_) => CommandKind::Rollback,
            Self::Undo => CommandKind::Undo,
            Self::Redo => CommandKind::Redo,
        }
    }

    /// Where the machine was before.
    fn reverse(self) -> Self {
        match self {
            Self::Checkpoint(_) | Self::Redo => Self::Undo,
            Self::Undo => Self::Redo,
        }
    }
}

impl MachineActor {
    /// Goes to another checkpoint; with `verify_image` the memory is hashed before the guest runs on.
    pub(crate) fn go(
        &mut self,
        to: Destination,
        verify_image: bool,
        request: &RollbackRequest,
    ) -> Result<Rollback, ManagerError> {
        self.must_allow(to.command())?;
        // Before the first byte is written.
        self.vm.capabilities().check_clock(request.clock)?;
        match (to, self.state) {
            (_, Lifecycle::Running | Lifecycle::Paused(_)) => self.go_in_place(to, verify_image, request),
            // What such a machine holds is not kept: its newest checkpoint is.
            (Destination::Checkpoint(target), _) => self
                .restore(target, verify_image, request, false)
                .inspect_err(|_| self.fail_if_half_written()),
            (Destination::Undo | Destination::Redo, _) => Err(self.refusal(to.command())),
        }
    }

    fn go_in_place(
        &mut self,
        to: Destination,
        verify_image: bool,
        request: &RollbackRequest,
    ) -> Result<Rollback, ManagerError> {
        let was_running = self.state == Lifecycle::Running;
        let report = self.record(to, request, verify_image).map_err(|error| {
            self.after_failed_move(was_running && verify_image, &error);
            ManagerError::from(error)
        })?;
        if verify_image {
            if !self.image_matches(report.target.id) {
                return Err(self.revert_mismatch(to, &report, was_running));
            }
            if was_running {
                self.run_on()?;
            }
        }
        if let Some(current) = &report.current {
            self.evaluate(current.clone());
        }
        self.finish_move(report, false, verify_image.then_some(true))
    }

    fn record(
        &mut self,
        to: Destination,
        request: &RollbackRequest,
        stays_paused: bool,
    ) -> Result<RollbackReport, StoreError> {
        let mut held;
        let machine: &mut dyn Machine = if stays_paused {
            held = HeldPaused(&mut *self.vm);
            &mut held
        } else {
            &mut *self.vm
        };
        match to {
            Destination::Checkpoint(target) => self.recorder.rollback(machine, target, request),
            Destination::Undo => self.recorder.undo(machine, request),
            Destination::Redo => self.recorder.redo(machine, request),
        }
    }

    /// The machine was reverted, unless the error says that this failed. `resumes` says that nobody has let it run on yet.
    fn after_failed_move(&mut self, resumes: bool, error: &StoreError) {
        match error {
            StoreError::RevertFailed { .. } => {
                self.enter(Lifecycle::Failed, error.to_string());
                self.emit(EventKind::State(Lifecycle::Failed, error.to_string()));
            }
            StoreError::Resume(_) => {
                if let Some(position) = self.recorder.position() {
                    self.evaluations.moved_to(position.checkpoint);
                }
            }
            _ if resumes => {
                if let Err(error) = self.vm.resume() {
                    tracing::warn!(machine = self.name, %error, "cannot resume after a rollback that failed");
                }
            }
            _ => {}
        }
        self.observe_failure();
    }

    /// Memory is not what it should be after a rollback: the guest does not run on with it. Brings back the state before and
    /// opens an incident.
    fn revert_mismatch(
        &mut self,
        to: Destination,
        report: &RollbackReport,
        was_running: bool,
    ) -> ManagerError {
        let reverted = self
            .record(to.reverse(), &RollbackRequest::default(), true)
            .map_err(ManagerError::from)
            .and_then(|back| {
                if self.image_matches(back.target.id) { Ok(back) } else { Err(self.mismatch(&back.target)) }
            });
        let is_reverted = match reverted {
            Ok(back) => {
                self.evaluations.moved_to(back.target.id);
                if was_running && let Err(error) = self.run_on() {
                    tracing::error!(machine = self.name, %error, "cannot resume");
                }
                true
            }
            Err(error) => {
                let reason = format!("memory is wrong after a rollback, and cannot be reverted: {error}");
                self.enter(Lifecycle::Failed, reason.clone());
                self.emit(EventKind::State(Lifecycle::Failed, reason));
                false
            }
        };
        self.open_mismatch_incident(&report.target, is_reverted);
        ManagerError::ImageMismatch {
            machine: self.name.clone(),
            checkpoint: report.target.name.clone(),
            is_reverted,
        }
    }

    fn mismatch(&self, target: &CheckpointRecord) -> ManagerError {
        ManagerError::ImageMismatch {
            machine: self.name.clone(),
            checkpoint: target.name.clone(),
            is_reverted: false,
        }
    }

    fn open_mismatch_incident(&mut self, target: &CheckpointRecord, is_reverted: bool) {
        let incident = NewIncident {
            first_bad: target.id,
            last_good: None,
            kind: "image-mismatch".to_owned(),
            summary: format!("after going to {}, the memory did not have its hash", target.name),
            detail: serde_json::Value::Null,
            action: Some(
                if is_reverted { "the state before was brought back" } else { "the machine stays paused" }
                    .to_owned(),
            ),
        };
        match self.store.catalogue().add_incident(self.id, &incident) {
            Ok(incident) => self.emit(EventKind::Incident(Box::new(incident))),
            Err(error) => tracing::error!(machine = self.name, %error, "cannot open an incident"),
        }
    }

    /// Gives the machine the state of a checkpoint, whatever it holds, and lets it run unless the user wants it paused.
    pub(crate) fn restore(
        &mut self,
        target: CheckpointId,
        verify_image: bool,
        request: &RollbackRequest,
        new_process: bool,
    ) -> Result<Rollback, ManagerError> {
        let report = self.recorder.restore(&mut *self.vm, target, request)?;
        if verify_image && !self.image_matches(report.target.id) {
            self.open_mismatch_incident(&report.target, false);
            let error = self.mismatch(&report.target);
            self.enter(Lifecycle::Failed, error.to_string());
            return Err(error);
        }
        self.follow_desired_state()?;
        self.finish_move(report, new_process, verify_image.then_some(true))
    }

    /// Sets a machine running that was given a state, unless the user wants it paused.
    fn follow_desired_state(&mut self) -> Result<(), ManagerError> {
        if self.store.catalogue().machine_by_id(self.id)?.desired_state == DesiredState::Paused {
            self.enter(Lifecycle::Paused(PausedBy::User), String::new());
            return Ok(());
        }
        if let Err(error) = self.vm.resume() {
            self.enter(Lifecycle::Paused(PausedBy::Other), format!("it cannot be resumed: {error}"));
            self.observe();
            if self.state != Lifecycle::Running {
                return Err(error.into());
            }
        }
        self.set_desired(DesiredState::Running);
        self.enter(Lifecycle::Running, String::new());
        Ok(())
    }

    /// After a restore in place that failed: whether memory was written is in the catalogue.
    pub(crate) fn fail_if_half_written(&mut self) {
        let process = self.vm.process().to_string();
        let interrupted = self.store.catalogue().interrupted(self.id).ok().flatten();
        if interrupted.is_some_and(|operation| operation.concerns_process(&process)) {
            let reason = "a restore failed, and its memory is half written".to_owned();
            self.enter(Lifecycle::Failed, reason.clone());
            self.emit(EventKind::State(Lifecycle::Failed, reason));
        }
        self.observe();
    }

    /// Whether the paused machine's memory has the checkpoint's hash. Memory that cannot be read has not.
    fn image_matches(&mut self, target: CheckpointId) -> bool {
        if self.vm.run_state() == RunState::Running {
            return false;
        }
        let compared = self
            .store
            .image_hash(target)
            .and_then(|expected| Ok(image_hash(self.vm.memory()).map_err(StoreError::from)? == expected));
        compared.unwrap_or_else(|error| {
            tracing::error!(machine = self.name, %error, "cannot compare memory with a checkpoint");
            false
        })
    }

    fn finish_move(
        &mut self,
        report: RollbackReport,
        new_process: bool,
        image_matches: Option<bool>,
    ) -> Result<Rollback, ManagerError> {
        self.evaluations.moved_to(report.target.id);
        let rollback = Rollback {
            kind: report.kind,
            operation: report.operation.name.clone(),
            steps: self.steps(report.current.as_ref(), &report.target)?,
            current: report.current,
            target: report.target,
            pages_written: report.pages_written,
            rollback_us: report.timing.rollback_us,
            new_process,
            image_matches,
        };
        self.emit(EventKind::Rollback(Box::new(rollback.clone())));
        Ok(rollback)
    }

    /// Checkpoints from the current state back to the target along parents; 0 when the target is no ancestor.
    fn steps(
        &self,
        current: Option<&CheckpointRecord>,
        target: &CheckpointRecord,
    ) -> Result<u32, ManagerError> {
        let Some(current) = current else { return Ok(0) };
        let line = self.store.catalogue().ancestry(current.id)?;
        let steps = line.iter().position(|ancestor| ancestor.id == target.id).unwrap_or(0);
        Ok(u32::try_from(steps).unwrap_or(u32::MAX))
    }
}
