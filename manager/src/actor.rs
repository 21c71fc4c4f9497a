//! The thread of one machine: checkpoints at the interval, commands in between.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use retrovisor_guest::{ClockPolicy, RunState, Vm};
use retrovisor_snapshot::{
    CheckpointId, CheckpointKind, CheckpointRecord, MachineId, Recorder, RecorderSettings, RollbackRequest,
    Store,
};
use tokio::sync::{broadcast, oneshot};

use crate::command::Command;
use crate::error::ManagerError;
use crate::evaluator::CheckpointEvaluator;
use crate::event::{Event, EventKind};
use crate::rollback::{Destination, Rollback};
use crate::spec::MachineSpec;
use crate::status::MachineStatus;
use crate::unreferenced_disks;

/// The machine is polled at least this often, also when no checkpoint is due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How a machine came to its actor.
pub(crate) enum Arrival {
    /// Started, or attached for the first time.
    New,
    /// Attached again after the daemon's restart.
    Reattached,
    /// A new process, waiting to be given the state of a checkpoint.
    Restore {
        target: CheckpointId,
        verify_image: bool,
        clock: ClockPolicy,
        arrived: oneshot::Sender<Rollback>,
    },
    /// A branch of another machine, whole and ready to run.
    Branch { first: Box<CheckpointRecord>, paused: bool },
}

/// One machine, its recorder and its evaluator.
pub(crate) struct MachineActor {
    pub(crate) name: String,
    pub(crate) id: MachineId,
    pub(crate) store: Arc<Store>,
    pub(crate) machine: Box<dyn Vm>,
    pub(crate) recorder: Recorder,
    pub(crate) evaluator: CheckpointEvaluator,
    pub(crate) paused: bool,
    pub(crate) events: broadcast::Sender<Event>,
    interval: Option<Duration>,
    has_networks: bool,
    /// A checkpoint that is to be evaluated before anything else.
    unevaluated: Option<Box<CheckpointRecord>>,
    status: Arc<Mutex<MachineStatus>>,
}

/// Sends commands to an actor.
pub(crate) struct ActorHandle {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
    status: Arc<Mutex<MachineStatus>>,
}

impl ActorHandle {
    pub(crate) fn alive(&self) -> bool {
        !self.thread.is_finished()
    }

    pub(crate) fn status(&self) -> MachineStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn send(&self, command: Command) -> Result<(), ()> {
        self.commands.send(command).map_err(|_| ())
    }

    /// Ends the actor and waits for it, so that a checkpoint under way is finished.
    pub(crate) fn detach(self) {
        if self.send(Command::Detach).is_ok() && self.thread.join().is_err() {
            tracing::error!("an actor panicked");
        }
    }
}

impl MachineActor {
    pub(crate) fn new(
        store: Arc<Store>,
        machine: Box<dyn Vm>,
        spec: &MachineSpec,
        arrival: &Arrival,
        recorder: Option<Recorder>,
        settings: &RecorderSettings,
        events: broadcast::Sender<Event>,
    ) -> Result<Self, ManagerError> {
        let identity = machine.identity().clone();
        let known = store.catalogue().machines()?.into_iter().find(|known| known.name == identity.name);
        let id = match known {
            Some(known) => known.id,
            None => store.catalogue().add_machine(&identity)?.id,
        };
        let spec = &MachineSpec { process: Some(machine.process()), ..spec.clone() };
        let runtime = spec.to_runtime()?;
        store.catalogue().set_runtime(id, &runtime)?;
        let recorder = match (recorder, arrival) {
            (Some(recorder), _) => recorder,
            (None, Arrival::New) => Recorder::fresh_with(Arc::clone(&store), id, settings.clone())?,
            (None, _) => Recorder::with_settings(Arc::clone(&store), id, settings.clone())?,
        };
        let has_networks = !spec.interfaces().is_empty();
        let status = MachineStatus {
            run_state: RunState::Running,
            every_ms: spec.every_ms,
            console: machine.console(),
            console_log: machine.console_log(),
            finder: machine.dirty_finder().name.to_owned(),
            confinement: machine.confinement(),
            links: if has_networks { machine.links() } else { Vec::new() },
        };
        Ok(Self {
            name: identity.name,
            id,
            evaluator: CheckpointEvaluator::new(Arc::clone(&store), id)?,
            store,
            machine,
            recorder,
            interval: spec.interval(),
            has_networks,
            paused: false,
            unevaluated: None,
            status: Arc::new(Mutex::new(status)),
            events,
        })
    }

    /// Takes the first checkpoint (or restores the one asked for), then goes on in a thread of its own.
    pub(crate) fn start(mut self, arrival: Arrival) -> Result<ActorHandle, ManagerError> {
        if matches!(arrival, Arrival::Reattached | Arrival::Restore { .. }) {
            match unreferenced_disks::release(&mut *self.machine, self.store.catalogue(), self.id) {
                Ok(0) => {}
                Ok(count) => {
                    tracing::info!(
                        machine = self.name,
                        count,
                        "released disk snapshots that no checkpoint refers to"
                    );
                }
                Err(error) => {
                    tracing::warn!(machine = self.name, %error, "disk snapshots that no checkpoint refers to stay");
                }
            }
        }
        match arrival {
            Arrival::New | Arrival::Reattached => {
                self.checkpoint(None, CheckpointKind::Automatic)?;
                // An earlier daemon may have died in the middle of a pause.
                self.machine.resume()?;
            }
            Arrival::Restore { target, verify_image, clock, arrived } => {
                let rollback = self.restore(target, verify_image, clock)?;
                // The machine is restored also when the caller no longer waits.
                let _ = arrived.send(rollback);
            }
            Arrival::Branch { first, paused } => {
                self.machine.make_independent()?;
                if paused {
                    self.pause()?;
                } else {
                    self.machine.resume()?;
                }
                self.unevaluated = Some(first);
            }
        }
        let (commands, inbox) = unbounded();
        let status = Arc::clone(&self.status);
        let thread = std::thread::Builder::new()
            .name(format!("machine-{}", self.name))
            .spawn(move || self.run(&inbox))
            .map_err(|source| ManagerError::Io {
                doing: "cannot start the thread of a machine".to_owned(),
                source,
            })?;
        Ok(ActorHandle { commands, thread, status })
    }

    fn run(mut self, inbox: &Receiver<Command>) {
        if let Some(first) = self.unevaluated.take() {
            self.evaluate(*first);
        }
        let step = self.interval.unwrap_or(POLL_INTERVAL);
        let mut next = Instant::now() + step;
        loop {
            match inbox.recv_deadline(next.min(Instant::now() + POLL_INTERVAL)) {
                Ok(Command::Detach) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Command::Stop { reply }) => {
                    let ended = self.stop();
                    // The machine is stopped also when the caller no longer waits.
                    let _ = reply.send(ended);
                    return;
                }
                Ok(command) => {
                    // A machine that was just rolled back runs for a whole interval before its next checkpoint.
                    if self.handle(command) {
                        next = Instant::now() + step;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let is_due = Instant::now() >= next;
                    if !self.poll(is_due) {
                        return;
                    }
                    if is_due {
                        // A slow disk stretches the interval: checkpoints that were due meanwhile are not made up for.
                        next = (next + step).max(Instant::now() + step / 4);
                    }
                }
            }
        }
    }

    /// Checks the state of the machine and takes the regular checkpoint if it is due. `false` when the machine is gone.
    fn poll(&mut self, is_due: bool) -> bool {
        if self.machine.run_state().has_ended() {
            self.set_run_state(RunState::Gone);
            self.emit(EventKind::Error(format!(
                "the guest or its process ended. Bring it back: retrovisor rollback {}",
                self.name
            )));
            return false;
        }
        if self.has_networks {
            let links = self.machine.links();
            self.status.lock().unwrap_or_else(PoisonError::into_inner).links = links;
        }
        if is_due
            && self.interval.is_some()
            && !self.paused
            && let Err(error) = self.checkpoint(None, CheckpointKind::Automatic)
        {
            tracing::warn!(machine = self.name, %error, "checkpoint failed");
            self.emit(EventKind::Error(format!("checkpoint failed, the guest runs on: {error}")));
        }
        true
    }

    /// Executes a command. Returns whether the machine moved to another checkpoint.
    fn handle(&mut self, command: Command) -> bool {
        let before = self.evaluator.moves();
        // An answer that no caller waits for any more is dropped: what was done is in the catalogue.
        match command {
            Command::Checkpoint { label, reply } => {
                drop(reply.send(self.checkpoint(label, CheckpointKind::Manual)));
            }
            Command::Rollback { target, verify_image, request, reply } => {
                drop(reply.send(self.move_to(Destination::Checkpoint(target), verify_image, &request)));
            }
            Command::Undo { verify_image, reply } => {
                drop(reply.send(self.move_to(Destination::Undo, verify_image, &RollbackRequest::default())));
            }
            Command::Redo { reply } => {
                drop(reply.send(self.move_to(Destination::Redo, false, &RollbackRequest::default())));
            }
            Command::Pause { reply } => drop(reply.send(self.pause())),
            Command::Resume { reply } => drop(reply.send(self.resume())),
            Command::Inject { fault, reply } => drop(reply.send(self.inject(&fault))),
            Command::Stop { .. } | Command::Detach => {}
        }
        self.evaluator.moves() != before
    }

    pub(crate) fn set_run_state(&self, run_state: RunState) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).run_state = run_state;
    }
}
