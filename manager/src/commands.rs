//! What an actor does for each command.

use std::collections::HashMap;
use std::sync::Arc;

use retrovisor_snapshot::{
    AuditReport, AuditStatus, CheckpointKind, CheckpointRecord, CheckpointRequest, DesiredState,
    RollbackRequest,
};

use crate::actor::{MachineActor, lock};
use crate::command::{Command, Reply};
use crate::error::ManagerError;
use crate::event::EventKind;
use crate::inject::{self, Fault};
use crate::lifecycle::{CommandKind, Lifecycle, PausedBy, Rule, rule};
use crate::moving::Destination;

impl MachineActor {
    /// Executes a command. Returns whether the machine moved to another checkpoint.
    pub(crate) fn handle(&mut self, command: Command) -> bool {
        let before = self.evaluations.moves();
        // An answer that no caller waits for any more is dropped: what was done is in the catalogue.
        match command {
            Command::Checkpoint { label, reply } => {
                let taken = self
                    .must_allow(CommandKind::Checkpoint)
                    .and_then(|()| self.checkpoint(label, CheckpointKind::Manual));
                drop(reply.send(taken));
            }
            Command::Audit { reply } => drop(reply.send(self.audit())),
            Command::Rollback { target, verify_image, request, reply } => {
                drop(reply.send(self.go(Destination::Checkpoint(target), verify_image, &request)));
            }
            Command::Undo { verify_image, reply } => {
                drop(reply.send(self.go(Destination::Undo, verify_image, &RollbackRequest::default())));
            }
            Command::Redo { verify_image, reply } => {
                drop(reply.send(self.go(Destination::Redo, verify_image, &RollbackRequest::default())));
            }
            Command::Pause { by, reply } => drop(reply.send(self.pause(by))),
            Command::Resume { reply } => drop(reply.send(self.resume())),
            Command::Inject { fault, reply } => self.inject(fault, reply),
            Command::Set { every_ms, reply } => {
                self.spec.every_ms = every_ms;
                lock(&self.status).every_ms = every_ms;
                self.save_spec();
                drop(reply.send(Ok(())));
            }
            Command::Stop { .. } | Command::Detach { .. } | Command::Shutdown => {}
        }
        self.evaluations.moves() != before
    }

    /// Observes the machine and refuses what its state does not allow.
    pub(crate) fn must_allow(&mut self, command: CommandKind) -> Result<(), ManagerError> {
        self.observe();
        if rule(self.state, command) == Rule::Refused { Err(self.refusal(command)) } else { Ok(()) }
    }

    /// Why the machine's state does not allow a command.
    pub(crate) fn refusal(&self, command: CommandKind) -> ManagerError {
        ManagerError::refused(&self.name, &lock(&self.status), command)
    }

    /// Takes a checkpoint, evaluates it and emits the event.
    pub(crate) fn checkpoint(
        &mut self,
        label: Option<String>,
        kind: CheckpointKind,
    ) -> Result<CheckpointRecord, ManagerError> {
        let request = CheckpointRequest { label, kind };
        let report = match self.recorder.checkpoint(&mut *self.vm, &request) {
            Ok(report) => report,
            Err(error) => {
                self.observe_failure();
                return Err(error.into());
            }
        };
        tracing::debug!(machine = self.name, timing = ?report.timing, "checkpoint");
        self.note_audit();
        Ok(self.evaluate(report.record))
    }

    /// Compares the whole memory, and the disks, with the newest checkpoint.
    fn audit(&mut self) -> Result<AuditReport, ManagerError> {
        self.must_allow(CommandKind::Audit)?;
        let audited = self.recorder.audit(&mut *self.vm);
        self.note_audit();
        audited.map_err(|error| {
            self.observe_failure();
            error.into()
        })
    }

    /// Keeps what the audit knows in the status, and reports what it found since the last call.
    fn note_audit(&mut self) {
        let now = self.recorder.audit_status();
        let found = |audit: &AuditStatus| (audit.mismatches, audit.mismatched_blocks());
        let (frames, blocks) = found(&now);
        let before = lock(&self.status).audit.replace(now);
        let before = before.as_ref().map_or((0, 0), found);
        if (frames, blocks) == before {
            return;
        }
        if frames != before.0 {
            self.emit(EventKind::Error(format!(
                "frames changed without being reported ({frames} so far): checkpoints are doubtful, and the next one looks \
                 at every frame"
            )));
        }
        if blocks != before.1 {
            self.emit(EventKind::Error(format!(
                "blocks of disks changed without being reported ({blocks} so far): checkpoints are doubtful, and the next \
                 one looks at every written block"
            )));
        }
        match self.store.catalogue().incidents(self.id) {
            Ok(mut incidents) => {
                if let Some(incident) = incidents.pop().filter(|newest| newest.kind == "capture") {
                    self.emit(EventKind::Incident(Box::new(incident)));
                }
            }
            Err(error) => tracing::warn!(machine = self.name, %error, "incidents cannot be read"),
        }
    }

    /// Reads and evaluates a checkpoint. One that cannot be evaluated is kept, and says so.
    pub(crate) fn evaluate(&mut self, record: CheckpointRecord) -> CheckpointRecord {
        let evaluated = match self.evaluations.evaluate(&record) {
            Ok(evaluated) => evaluated,
            Err(why) => {
                self.emit(EventKind::Error(format!("checkpoint {} is kept; {why}", record.name)));
                return record;
            }
        };
        self.emit(EventKind::Checkpoint(Box::new(evaluated.record.clone()), evaluated.reasons));
        if let Some(incident) = evaluated.incident {
            self.emit(EventKind::Incident(Box::new(incident)));
        }
        evaluated.record
    }

    fn pause(&mut self, by: PausedBy) -> Result<(), ManagerError> {
        self.must_allow(CommandKind::Pause)?;
        if let Err(error) = self.vm.pause() {
            self.observe_failure();
            return Err(error.into());
        }
        self.set_desired(DesiredState::Paused);
        self.enter(Lifecycle::Paused(by), String::new());
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ManagerError> {
        self.must_allow(CommandKind::Resume)?;
        self.vm.resume()?;
        self.set_desired(DesiredState::Running);
        self.enter(Lifecycle::Running, String::new());
        // A machine whose disk is still full stops again at once.
        self.observe();
        Ok(())
    }

    /// Takes the last checkpoint of a machine that is to be stopped. After a failure the machine goes on as before,
    /// unless the stop is forced.
    pub(crate) fn prepare_stop(&mut self, force: bool) -> Result<(), ManagerError> {
        self.must_allow(if force { CommandKind::ForceStop } else { CommandKind::Stop })?;
        let before = self.state;
        // What a machine in another state holds is worth nothing, or is not the guest's any more.
        if matches!(before, Lifecycle::Running | Lifecycle::Paused(_)) {
            let taken = self
                .vm
                .pause()
                .map_err(ManagerError::from)
                .and_then(|()| self.checkpoint(None, CheckpointKind::Manual));
            if let Err(error) = taken {
                if !force {
                    if before == Lifecycle::Running {
                        self.run_on()?;
                    }
                    return Err(ManagerError::NotStopped {
                        machine: self.name.clone(),
                        source: Box::new(error),
                    });
                }
                tracing::warn!(machine = self.name, %error, "stopped without a last checkpoint");
            }
        }
        self.set_desired(DesiredState::Stopped);
        Ok(())
    }

    pub(crate) fn prepare_detach(&mut self) -> Result<(), ManagerError> {
        self.must_allow(CommandKind::Detach)?;
        self.vm.make_independent()?;
        self.spec.is_released = true;
        self.save_spec();
        Ok(())
    }

    fn inject(&mut self, fault: Fault, reply: Reply<(String, String)>) {
        match fault {
            Fault::Memory { name, arguments } => drop(reply.send(self.change_memory(&name, arguments))),
            Fault::ConsoleCommand { line } => self.type_command(line, reply),
        }
    }

    fn change_memory(
        &mut self,
        fault: &str,
        arguments: HashMap<String, String>,
    ) -> Result<(String, String), ManagerError> {
        self.must_allow(CommandKind::Inject)?;
        let newest = self.recorder.position().ok_or_else(|| ManagerError::Refused {
            what: format!("{} has no checkpoint yet, on which the fault would be planned", self.name),
            help: format!("Take one: retrovisor checkpoint {}", self.name),
        })?;
        let plan = inject::plan(&self.store, newest.checkpoint, fault, arguments)?;
        let recorder = &mut self.recorder;
        // Whatever fails on the way, the next checkpoint has these frames.
        let applied = plan.apply(&mut *self.vm, &mut |frames| recorder.note_written(frames));
        if let Err(error @ retrovisor_faults::Error::NotReverted(_)) = applied {
            let reason = error.to_string();
            self.enter(Lifecycle::Failed, reason.clone());
            self.emit(EventKind::State(Lifecycle::Failed, reason));
            self.observe();
            return Err(error.into());
        }
        if self.state == Lifecycle::Running {
            self.run_on()?;
        }
        applied?;
        let done = plan.description;
        let operation = inject::record(&self.store, self.id, &done)?;
        self.emit(EventKind::Injected(done.clone()));
        Ok((done, operation))
    }

    /// Types a command in a thread of its own: a slow guest delays neither checkpoints nor other commands.
    fn type_command(&mut self, line: String, reply: Reply<(String, String)>) {
        let port = self.must_allow(CommandKind::InjectCommand).and_then(|()| {
            self.vm.control_port().ok_or_else(|| ManagerError::Refused {
                what: format!("{} has no port for a control shell", self.name),
                help: "Start it with `retrovisor run`, from a guest that serves a shell on its second \
                    serial port (ttyS1) under QEMU, or on hvc0 in a microVM."
                    .to_owned(),
            })
        });
        let port = match port {
            Ok(port) => port,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (store, id, events, name) =
            (Arc::clone(&self.store), self.id, self.events.clone(), self.name.clone());
        let work = move || {
            let done = inject::type_line(&port.socket, port.terminal, &line).and_then(|()| {
                let done = format!("Injected: `{line}` was typed into the guest's control shell.");
                let operation = inject::record(&store, id, &done)?;
                crate::event::emit(&events, &name, EventKind::Injected(done.clone()));
                Ok((done, operation))
            });
            drop(reply.send(done));
        };
        // Without a thread the reply is dropped, which the caller gets as a failure.
        if let Err(error) = std::thread::Builder::new().name(format!("inject-{}", self.name)).spawn(work) {
            tracing::error!(machine = self.name, %error, "cannot start a thread");
        }
    }
}
