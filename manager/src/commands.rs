//! What an actor does for each command.

use retrovisor_guest::{ClockPolicy, Machine, RunState};
use retrovisor_snapshot::{
    CheckpointId, CheckpointKind, CheckpointRecord, CheckpointRequest, OperationKind, RollbackReport,
    RollbackRequest, image_hash, now_ms,
};

use crate::actor::MachineActor;
use crate::error::ManagerError;
use crate::event::{Event, EventKind};
use crate::held_paused::HeldPaused;
use crate::inject::{self, Fault};
use crate::rollback::{Destination, Rollback, RollbackKind};

impl MachineActor {
    /// Takes a checkpoint, evaluates it and emits the event.
    pub(crate) fn checkpoint(
        &mut self,
        label: Option<String>,
        kind: CheckpointKind,
    ) -> Result<CheckpointRecord, ManagerError> {
        let request = CheckpointRequest { label, kind };
        let report = self.recorder.checkpoint(&mut *self.machine, &request)?;
        tracing::debug!(machine = self.name, timing = ?report.timing, "checkpoint");
        Ok(self.evaluate(report.record))
    }

    /// Reads and evaluates a checkpoint. One that cannot be evaluated is kept, without a verdict.
    pub(crate) fn evaluate(&mut self, record: CheckpointRecord) -> CheckpointRecord {
        let evaluated = match self.evaluator.evaluate(&record) {
            Ok(evaluated) => evaluated,
            Err(error) => {
                self.emit(EventKind::Error(format!(
                    "checkpoint {} is kept, but cannot be evaluated: {error}",
                    record.name
                )));
                return record;
            }
        };
        self.emit(EventKind::Checkpoint(Box::new(evaluated.record.clone()), evaluated.reasons));
        if let Some(incident) = evaluated.incident {
            self.emit(EventKind::Incident(Box::new(incident)));
        }
        evaluated.record
    }

    /// Goes to another checkpoint; with `verify_image` the memory is hashed before the guest runs on.
    pub(crate) fn move_to(
        &mut self,
        to: Destination,
        verify_image: bool,
        request: &RollbackRequest,
    ) -> Result<Rollback, ManagerError> {
        let (report, image_matches) = if verify_image {
            let report = Self::go(&mut self.recorder, &mut HeldPaused(&mut *self.machine), to, request)?;
            let compared = self.compare_image(report.target.id);
            // The guest runs on whatever the comparison gave.
            if !self.paused {
                self.machine.resume()?;
            }
            (report, Some(compared))
        } else {
            (Self::go(&mut self.recorder, &mut *self.machine, to, request)?, None)
        };
        if let Some(current) = &report.current {
            self.evaluate(current.clone());
        }
        self.evaluator.moved_to(report.target.id);
        self.finish_move(to.kind(), report, image_matches.transpose()?)
    }

    fn go(
        recorder: &mut retrovisor_snapshot::Recorder,
        machine: &mut dyn Machine,
        to: Destination,
        request: &RollbackRequest,
    ) -> Result<RollbackReport, ManagerError> {
        Ok(match to {
            Destination::Checkpoint(target) => recorder.rollback(machine, target, request)?,
            Destination::Undo => recorder.undo(machine, request)?,
            Destination::Redo => recorder.redo(machine, request)?,
        })
    }

    /// Gives a new process the state of a checkpoint and lets it run.
    pub(crate) fn restore(
        &mut self,
        target: CheckpointId,
        verify_image: bool,
        clock: ClockPolicy,
    ) -> Result<Rollback, ManagerError> {
        let request = RollbackRequest { clock, ..RollbackRequest::default() };
        let report = self.recorder.restore(&mut *self.machine, target, &request)?;
        let image_matches = verify_image.then(|| self.compare_image(report.target.id));
        self.machine.resume()?;
        self.evaluator.moved_to(report.target.id);
        self.finish_move(RollbackKind::Restore, report, image_matches.transpose()?)
    }

    /// Whether the paused machine's memory has the checkpoint's hash.
    fn compare_image(&self, target: CheckpointId) -> Result<bool, ManagerError> {
        let expected = self.store.image_hash(target)?;
        let found = image_hash(self.machine.memory()).map_err(retrovisor_snapshot::Error::from)?;
        Ok(found == expected)
    }

    fn finish_move(
        &mut self,
        kind: RollbackKind,
        report: RollbackReport,
        image_matches: Option<bool>,
    ) -> Result<Rollback, ManagerError> {
        let rollback = Rollback {
            kind,
            operation: report.operation.name.clone(),
            steps: self.steps(report.current.as_ref(), &report.target)?,
            current: report.current,
            target: report.target,
            pages_written: report.pages_written,
            rollback_us: report.timing.rollback_us,
            new_process: kind == RollbackKind::Restore,
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

    pub(crate) fn pause(&mut self) -> Result<(), ManagerError> {
        self.machine.pause()?;
        self.paused = true;
        self.set_run_state(RunState::Paused);
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> Result<(), ManagerError> {
        self.machine.resume()?;
        self.paused = false;
        self.set_run_state(RunState::Running);
        Ok(())
    }

    /// A last checkpoint, then the end of the VM.
    pub(crate) fn stop(mut self) -> Result<(), ManagerError> {
        if !self.machine.run_state().has_ended() {
            self.machine.pause()?;
            self.checkpoint(None, CheckpointKind::Manual)?;
        }
        self.machine.quit();
        Ok(())
    }

    /// Injects a fault; returns what was done, and the operation's name.
    pub(crate) fn inject(&mut self, fault: &Fault) -> Result<(String, String), ManagerError> {
        let done = match fault {
            Fault::Memory { name, arguments } => {
                let newest = self
                    .recorder
                    .position()
                    .ok_or_else(|| ManagerError::Gone { machine: self.name.clone() })?;
                let recorder = &mut self.recorder;
                let done = inject::change_memory(
                    &mut *self.machine,
                    &self.store,
                    newest.checkpoint,
                    (name, arguments),
                    &mut |frames| recorder.note_written(frames),
                );
                if !self.paused {
                    self.machine.resume()?;
                }
                done?
            }
            Fault::ConsoleCommand { line } => {
                let port = self.machine.control_port().ok_or_else(|| ManagerError::Refused {
                    what: format!("{} has no port for a control shell", self.name),
                    help: "Start it with `retrovisor run`, from a guest that serves a shell on its second \
                        serial port (ttyS1) under QEMU, or on hvc0 in a microVM."
                        .to_owned(),
                })?;
                inject::type_line(&port.socket, port.terminal, line)?;
                format!("Injected: `{line}` was typed into the guest's control shell.")
            }
        };
        let detail = serde_json::json!({ "done": done });
        let operation = self.store.catalogue().note_operation(self.id, OperationKind::Inject, &detail)?;
        self.emit(EventKind::Injected(done.clone()));
        Ok((done, operation.name))
    }

    pub(crate) fn emit(&self, kind: EventKind) {
        let event = Event { machine: self.name.clone(), at_ms: now_ms(), kind };
        // There may be no receiver.
        let _ = self.events.send(event);
    }
}
