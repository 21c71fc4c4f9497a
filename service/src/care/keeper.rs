//! The thread that cares for one machine: checkpoints at the interval, commands in between.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use retrovisor_guest::{ClockPolicy, RunState};
use retrovisor_snapshot::{
    CheckpointId, CheckpointKind, CheckpointRecord, MachineId, Recorder, RecorderSettings, RollbackRequest,
    Store,
};
use tokio::sync::{broadcast, oneshot};

use super::command::{Command, Journey, Vitals, Way};
use super::error::CareError;
use super::event::{Event, Happening};
use super::judge::Judge;
use super::leftovers;
use super::spec::Spec;
use super::vm::Vm;

/// The guest is looked after at least this often, also when no checkpoint is due.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// How a machine came into care.
pub(super) enum Arrival {
    /// Started, or attached for the first time.
    Fresh,
    /// Found again after the daemon's restart.
    Again,
    /// A new process, waiting to be given the state of a checkpoint.
    Restore {
        target: CheckpointId,
        verify_image: bool,
        clock: ClockPolicy,
        arrived: oneshot::Sender<Journey>,
    },
    /// A branch of another machine, whole and ready to run.
    Branch { first: Box<CheckpointRecord>, paused: bool },
}

/// One machine, its recorder and its judge.
pub(super) struct Keeper {
    pub(super) name: String,
    pub(super) id: MachineId,
    pub(super) store: Arc<Store>,
    pub(super) machine: Vm,
    pub(super) recorder: Recorder,
    pub(super) judge: Judge,
    pub(super) paused: bool,
    pub(super) events: broadcast::Sender<Event>,
    interval: Option<Duration>,
    has_networks: bool,
    /// A checkpoint that is to be read and judged before anything else.
    unread: Option<Box<CheckpointRecord>>,
    vitals: Arc<Mutex<Vitals>>,
}

/// The way to a keeper.
pub(crate) struct KeeperHandle {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
    vitals: Arc<Mutex<Vitals>>,
}

impl KeeperHandle {
    pub(super) fn alive(&self) -> bool {
        !self.thread.is_finished()
    }

    pub(super) fn vitals(&self) -> Vitals {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn send(&self, command: Command) -> Result<(), ()> {
        self.commands.send(command).map_err(|_| ())
    }

    /// Ends the keeper and waits for it, so that a checkpoint under way is finished.
    pub(super) fn let_go(self) {
        if self.send(Command::LetGo).is_ok() && self.thread.join().is_err() {
            tracing::error!("a keeper panicked");
        }
    }
}

impl Keeper {
    pub(super) fn new(
        store: Arc<Store>,
        machine: Vm,
        spec: &Spec,
        arrival: &Arrival,
        recorder: Option<Recorder>,
        settings: &RecorderSettings,
        events: broadcast::Sender<Event>,
    ) -> Result<Self, CareError> {
        let identity = machine.identity().clone();
        let known = store.catalogue().machines()?.into_iter().find(|known| known.name == identity.name);
        let id = match known {
            Some(known) => known.id,
            None => store.catalogue().add_machine(&identity)?.id,
        };
        let runtime = serde_json::to_string(spec).map_err(|error| CareError::Invalid(error.to_string()))?;
        store.catalogue().set_runtime(id, &runtime)?;
        let recorder = match (recorder, arrival) {
            (Some(recorder), _) => recorder,
            (None, Arrival::Fresh) => Recorder::fresh_with(Arc::clone(&store), id, settings.clone())?,
            (None, _) => Recorder::with_settings(Arc::clone(&store), id, settings.clone())?,
        };
        let has_networks = !spec.interfaces().is_empty();
        let vitals = Vitals {
            run_state: RunState::Running,
            every_ms: spec.every_ms,
            console: machine.console(),
            console_log: machine.console_log(),
            finder: machine.finder(),
            confinement: machine.confinement(),
            links: if has_networks { machine.links() } else { Vec::new() },
        };
        Ok(Self {
            name: identity.name,
            id,
            judge: Judge::new(Arc::clone(&store), id)?,
            store,
            machine,
            recorder,
            interval: spec.interval(),
            has_networks,
            paused: false,
            unread: None,
            vitals: Arc::new(Mutex::new(vitals)),
            events,
        })
    }

    /// Takes the first checkpoint (or restores the one asked for), then goes on in a thread of its own.
    pub(super) fn start(mut self, arrival: Arrival) -> Result<KeeperHandle, CareError> {
        if matches!(arrival, Arrival::Again | Arrival::Restore { .. }) {
            match leftovers::release(&mut *self.machine, self.store.catalogue(), self.id) {
                Ok(0) => {}
                Ok(count) => {
                    tracing::info!(machine = self.name, count, "disk snapshots that nobody needs released");
                }
                Err(error) => {
                    tracing::warn!(machine = self.name, %error, "disk snapshots that nobody needs stay");
                }
            }
        }
        match arrival {
            Arrival::Fresh | Arrival::Again => {
                self.checkpoint(None, CheckpointKind::Automatic)?;
                // An earlier self may have died in the middle of a pause.
                self.machine.resume()?;
            }
            Arrival::Restore { target, verify_image, clock, arrived } => {
                let journey = self.restore(target, verify_image, clock)?;
                // Nobody waits any more: the machine is back all the same.
                let _ = arrived.send(journey);
            }
            Arrival::Branch { first, paused } => {
                self.machine.detach()?;
                if paused {
                    self.pause()?;
                } else {
                    self.machine.resume()?;
                }
                self.unread = Some(first);
            }
        }
        let (commands, inbox) = unbounded();
        let vitals = Arc::clone(&self.vitals);
        let thread = std::thread::Builder::new()
            .name(format!("keeper-{}", self.name))
            .spawn(move || self.keep(&inbox))
            .map_err(|source| CareError::Io { doing: "cannot start a keeper thread".to_owned(), source })?;
        Ok(KeeperHandle { commands, thread, vitals })
    }

    fn keep(mut self, inbox: &Receiver<Command>) {
        if let Some(first) = self.unread.take() {
            self.judged(*first);
        }
        let step = self.interval.unwrap_or(IDLE_LOOK);
        let mut next = Instant::now() + step;
        loop {
            match inbox.recv_deadline(next.min(Instant::now() + IDLE_LOOK)) {
                Ok(Command::LetGo) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Command::Stop { reply }) => {
                    let ended = self.stop();
                    // A caller that went away does not keep the machine running.
                    let _ = reply.send(ended);
                    return;
                }
                Ok(command) => {
                    // A machine that just went somewhere is given a whole interval there.
                    if self.obey(command) {
                        next = Instant::now() + step;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let is_due = Instant::now() >= next;
                    if !self.look_after(is_due) {
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

    /// Looks how the machine is, and takes the regular checkpoint if it is due. `false` when the machine is gone.
    fn look_after(&mut self, is_due: bool) -> bool {
        if self.machine.run_state().has_ended() {
            self.set_run_state(RunState::Gone);
            self.say(Happening::Trouble(format!(
                "the guest or its process ended. Bring it back: retrovisor rollback {}",
                self.name
            )));
            return false;
        }
        if self.has_networks {
            let links = self.machine.links();
            self.vitals.lock().unwrap_or_else(PoisonError::into_inner).links = links;
        }
        if is_due
            && self.interval.is_some()
            && !self.paused
            && let Err(error) = self.checkpoint(None, CheckpointKind::Automatic)
        {
            tracing::warn!(machine = self.name, %error, "checkpoint failed");
            self.say(Happening::Trouble(format!("checkpoint failed, the guest runs on: {error}")));
        }
        true
    }

    /// Does what was asked. Whether the machine moved to another checkpoint.
    fn obey(&mut self, command: Command) -> bool {
        let before = self.judge.moves();
        // An answer that nobody waits for any more is dropped: the deed is in the catalogue.
        match command {
            Command::Checkpoint { label, reply } => {
                drop(reply.send(self.checkpoint(label, CheckpointKind::Manual)));
            }
            Command::Rollback { target, verify_image, request, reply } => {
                drop(reply.send(self.travel(&Way::Rollback(target), verify_image, &request)));
            }
            Command::Undo { verify_image, reply } => {
                drop(reply.send(self.travel(&Way::Undo, verify_image, &RollbackRequest::default())));
            }
            Command::Redo { reply } => {
                drop(reply.send(self.travel(&Way::Redo, false, &RollbackRequest::default())));
            }
            Command::Pause { reply } => drop(reply.send(self.pause())),
            Command::Resume { reply } => drop(reply.send(self.resume())),
            Command::Inject { fault, reply } => drop(reply.send(self.inject(&fault))),
            Command::Stop { .. } | Command::LetGo => {}
        }
        self.judge.moves() != before
    }

    pub(super) fn set_run_state(&self, run_state: RunState) {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner).run_state = run_state;
    }
}
