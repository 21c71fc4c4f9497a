//! What a keeper does when it is asked.

use retrovisor_guest::{ClockPolicy, Machine, RunState};
use retrovisor_snapshot::{
    CheckpointId, CheckpointKind, CheckpointRecord, CheckpointRequest, OperationKind, RollbackReport,
    RollbackRequest, image_hash,
};

use super::command::{Journey, Way};
use super::error::CareError;
use super::event::{Event, Happening, now_ms};
use super::held::Held;
use super::inject::{self, Fault};
use super::keeper::Keeper;

impl Keeper {
    /// Takes a checkpoint, reads and judges it, and tells.
    pub(super) fn checkpoint(
        &mut self,
        label: Option<String>,
        kind: CheckpointKind,
    ) -> Result<CheckpointRecord, CareError> {
        let request = CheckpointRequest { label, kind };
        let report = self.recorder.checkpoint(&mut *self.machine, &request)?;
        tracing::debug!(machine = self.name, timing = ?report.timing, "checkpoint");
        Ok(self.judged(report.record))
    }

    /// Reads and judges a checkpoint. One that cannot be judged is a checkpoint all the same.
    pub(super) fn judged(&mut self, record: CheckpointRecord) -> CheckpointRecord {
        let judged = match self.judge.judge(&record) {
            Ok(judged) => judged,
            Err(error) => {
                self.say(Happening::Trouble(format!(
                    "checkpoint {} is kept, but cannot be judged: {error}",
                    record.name
                )));
                return record;
            }
        };
        self.say(Happening::Checkpoint(Box::new(judged.record.clone()), judged.reasons));
        if let Some(incident) = judged.incident {
            self.say(Happening::Incident(Box::new(incident)));
        }
        judged.record
    }

    /// Goes to another checkpoint; with `verify_image` the memory is hashed before the guest runs on.
    pub(super) fn travel(
        &mut self,
        way: &Way,
        verify_image: bool,
        request: &RollbackRequest,
    ) -> Result<Journey, CareError> {
        let (report, image_matches) = if verify_image {
            let report = Self::go(&mut self.recorder, &mut Held(&mut *self.machine), way, request)?;
            let compared = self.compare_image(report.target.id);
            // Whatever became of comparing, the guest does not stand still because of it.
            if !self.paused {
                self.machine.resume()?;
            }
            (report, Some(compared))
        } else {
            (Self::go(&mut self.recorder, &mut *self.machine, way, request)?, None)
        };
        if let Some(present) = &report.present {
            self.judged(present.clone());
        }
        self.judge.moved_to(report.target.id);
        self.arrived(report, false, image_matches.transpose()?)
    }

    fn go(
        recorder: &mut retrovisor_snapshot::Recorder,
        machine: &mut dyn Machine,
        way: &Way,
        request: &RollbackRequest,
    ) -> Result<RollbackReport, CareError> {
        Ok(match way {
            Way::Rollback(target) => recorder.rollback(machine, *target, request)?,
            Way::Undo => recorder.undo(machine, request)?,
            Way::Redo => recorder.redo(machine, request)?,
        })
    }

    /// Gives a new process the state of a checkpoint and lets it run.
    pub(super) fn restore(
        &mut self,
        target: CheckpointId,
        verify_image: bool,
        clock: ClockPolicy,
    ) -> Result<Journey, CareError> {
        let request = RollbackRequest { clock, ..RollbackRequest::default() };
        let report = self.recorder.restore(&mut *self.machine, target, &request)?;
        let image_matches = verify_image.then(|| self.compare_image(report.target.id));
        self.machine.resume()?;
        self.judge.moved_to(report.target.id);
        self.arrived(report, true, image_matches.transpose()?)
    }

    /// Whether the paused machine's memory has the checkpoint's hash.
    fn compare_image(&self, target: CheckpointId) -> Result<bool, CareError> {
        let expected = self.store.image_hash(target)?;
        let found = image_hash(self.machine.memory()).map_err(retrovisor_snapshot::Error::from)?;
        Ok(found == expected)
    }

    fn arrived(
        &mut self,
        report: RollbackReport,
        new_process: bool,
        image_matches: Option<bool>,
    ) -> Result<Journey, CareError> {
        let journey = Journey {
            operation: report.operation.name.clone(),
            steps: self.steps(report.present.as_ref(), &report.target)?,
            present: report.present,
            target: report.target,
            pages_written: report.pages_written,
            rollback_us: report.timing.rollback_us,
            new_process,
            image_matches,
        };
        self.say(Happening::Move(Box::new(journey.clone())));
        Ok(journey)
    }

    /// Checkpoints from the present back to the target along parents; 0 when it does not lie there.
    fn steps(&self, present: Option<&CheckpointRecord>, target: &CheckpointRecord) -> Result<u32, CareError> {
        let Some(present) = present else { return Ok(0) };
        let line = self.store.catalogue().ancestry(present.id)?;
        let steps = line.iter().position(|ancestor| ancestor.id == target.id).unwrap_or(0);
        Ok(u32::try_from(steps).unwrap_or(u32::MAX))
    }

    pub(super) fn pause(&mut self) -> Result<(), CareError> {
        self.machine.pause()?;
        self.paused = true;
        self.set_run_state(RunState::Paused);
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), CareError> {
        self.machine.resume()?;
        self.paused = false;
        self.set_run_state(RunState::Running);
        Ok(())
    }

    /// A last checkpoint, then the end of the VM.
    pub(super) fn stop(mut self) -> Result<(), CareError> {
        if self.machine.run_state() != RunState::Gone {
            self.machine.pause()?;
            self.checkpoint(None, CheckpointKind::Manual)?;
        }
        self.machine.quit();
        Ok(())
    }

    /// Hurts the guest; says what was done, and the operation's name.
    pub(super) fn inject(&mut self, fault: &Fault) -> Result<(String, String), CareError> {
        let done = match fault {
            Fault::Memory { name, arguments } => {
                let newest =
                    self.recorder.position().ok_or_else(|| CareError::Gone { machine: self.name.clone() })?;
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
                let control = self.machine.control().ok_or_else(|| CareError::Refused {
                    what: format!("{} has no port for a control shell", self.name),
                    help: "Start it with `retrovisor run`, from a guest that serves a shell on its second \
                        serial port (ttyS1) under QEMU, or on hvc0 in a microVM."
                        .to_owned(),
                })?;
                inject::type_line(&control, self.machine.control_port(), line)?;
                format!("Injected: `{line}` was typed into the guest's control shell.")
            }
        };
        let detail = serde_json::json!({ "done": done });
        let operation = self.store.catalogue().note_operation(self.id, OperationKind::Inject, &detail)?;
        self.say(Happening::Injected(done.clone()));
        Ok((done, operation.name))
    }

    pub(super) fn say(&self, happening: Happening) {
        let event = Event { machine: self.name.clone(), at_ms: now_ms(), happening };
        // Without a listener there is nobody to tell.
        let _ = self.events.send(event);
    }
}
