//! The thread of one machine: checkpoints at the interval, commands in between.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use retrovisor_guest::{Driver, GuestEvent};
use retrovisor_snapshot::{CheckpointKind, CheckpointRecord, DesiredState, MachineId, Recorder, Store};
use tokio::sync::{broadcast, watch};

use crate::command::{Command, Reply};
use crate::driver_calls::DriverCalls;
use crate::error::ManagerError;
use crate::evaluator::Evaluations;
use crate::event::{self, Event, EventKind};
use crate::lifecycle::{Lifecycle, PausedBy};
use crate::panics;
use crate::process_guard::ProcessGuard;
use crate::spec::{MachineSpec, Origin};
use crate::status::MachineStatus;

/// The machine is polled at least this often, also when no checkpoint is due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// One machine, its recorder and its evaluations.
pub(crate) struct MachineActor {
    pub(crate) name: String,
    pub(crate) id: MachineId,
    pub(crate) store: Arc<Store>,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) vm: ProcessGuard,
    pub(crate) recorder: Recorder,
    pub(crate) evaluations: Evaluations,
    pub(crate) spec: MachineSpec,
    pub(crate) state: Lifecycle,
    /// A checkpoint that is to be evaluated before anything else.
    pub(crate) unevaluated: Option<Box<CheckpointRecord>>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) status: Arc<Mutex<MachineStatus>>,
}

/// Sends commands to an actor.
pub(crate) struct ActorHandle {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
    status: Arc<Mutex<MachineStatus>>,
    calls: Arc<DriverCalls>,
    /// Whether it was reported that a call of its driver does not return.
    is_overdue_reported: AtomicBool,
    has_ended: watch::Receiver<bool>,
}

/// How an actor ends.
enum End {
    /// The machine's process is to be ended.
    Stop(Reply<()>),
    /// The machine is to be given back as it was found.
    Detach(Reply<Vec<String>>),
    /// The daemon ends; the machine goes on.
    Shutdown,
    /// The process is gone, or does not answer any more: the state says which.
    Lost,
}

impl ActorHandle {
    pub(crate) fn is_alive(&self) -> bool {
        !*self.has_ended.borrow() && !self.thread.is_finished()
    }

    /// Whether commands can be sent to it: it is alive and has not lost its machine.
    pub(crate) fn accepts_commands(&self) -> bool {
        self.is_alive() && self.status().state.has_actor()
    }

    /// Becomes `true` when the actor has ended.
    pub(crate) fn end(&self) -> watch::Receiver<bool> {
        self.has_ended.clone()
    }

    /// Why it does not answer, in words, if a call of its driver does not return in time.
    pub(crate) fn overdue(&self) -> Option<String> {
        self.is_alive().then(|| self.calls.overdue()).flatten()
    }

    /// The status; that of an actor whose driver does not return is that its process does not answer.
    pub(crate) fn status(&self) -> MachineStatus {
        let status = lock(&self.status).clone();
        match self.overdue() {
            Some(reason) => MachineStatus { state: Lifecycle::Unreachable, reason, ..status },
            None => status,
        }
    }

    /// The status, if whether it is overdue has changed since this was asked last.
    pub(crate) fn changed_overdue(&self) -> Option<MachineStatus> {
        let status = self.status();
        let is_overdue = self.overdue().is_some();
        (self.is_overdue_reported.swap(is_overdue, Ordering::Relaxed) != is_overdue).then_some(status)
    }

    /// Whether it has lost its machine and is about to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_alive() && !lock(&self.status).state.has_actor() && self.overdue().is_none()
    }

    pub(crate) fn send(&self, command: Command) -> Result<(), ()> {
        self.commands.send(command).map_err(|_| ())
    }

    /// Waits for the end of an actor that was asked to end, so that a checkpoint under way is finished. One whose driver does
    /// not return is not waited for.
    pub(crate) fn wait_for_end(self, deadline: Instant) {
        while !self.thread.is_finished() {
            if Instant::now() > deadline || self.overdue().is_some() {
                tracing::error!(thread = self.thread.thread().name(), "the actor of a machine does not end");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl MachineActor {
    /// Goes on in a thread of its own.
    pub(crate) fn start(self) -> Result<ActorHandle, ManagerError> {
        let (commands, inbox) = unbounded();
        let status = Arc::clone(&self.status);
        let calls = Arc::clone(self.vm.calls());
        let (end, has_ended) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name(format!("machine-{}", self.name))
            .spawn(move || self.run(&inbox, &end))
            .map_err(|source| ManagerError::Io {
                doing: "cannot start the thread of a machine".to_owned(),
                source,
            })?;
        Ok(ActorHandle {
            commands,
            thread,
            status,
            calls,
            is_overdue_reported: AtomicBool::new(false),
            has_ended,
        })
    }

    /// A panic in a driver or in the recorder ends this actor and nothing else: what they hold may be inconsistent, so the
    /// process is attached again, with a new recorder.
    fn run(mut self, inbox: &Receiver<Command>, has_ended: &watch::Sender<bool>) {
        let end = catch_unwind(AssertUnwindSafe(|| self.serve(inbox))).unwrap_or_else(|panic| {
            let is_alive = self.driver.is_alive(&self.vm.process());
            let state = if is_alive { Lifecycle::Unreachable } else { Lifecycle::Gone };
            self.enter(
                state,
                format!("an internal error ended its management: {}", panics::message(&*panic)),
            );
            End::Lost
        });
        // The handle says how it ended before a caller learns of it.
        let (status, driver, process) =
            (Arc::clone(&self.status), Arc::clone(&self.driver), self.vm.process());
        let is_released = self.spec.is_released;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.end(end, has_ended))) {
            let reason =
                format!("an internal error in the end of its management: {}", panics::message(&*panic));
            tracing::error!("{reason}");
            let state = match driver.is_alive(&process) {
                false => Lifecycle::Gone,
                true if is_released => Lifecycle::Detached,
                true => Lifecycle::Unreachable,
            };
            let mut status = lock(&status);
            *status = MachineStatus::without_actor(state, reason, status.every_ms, Some(process));
        }
        has_ended.send_replace(true);
    }

    fn end(self, end: End, has_ended: &watch::Sender<bool>) {
        let Self { name, mut vm, mut recorder, status, spec, .. } = self;
        // What is being stored is finished first.
        recorder.drain(&mut *vm);
        drop(recorder);
        let note = |state, reason: &str| {
            let mut status = lock(&status);
            let (every_ms, process) = (status.every_ms, status.process.clone());
            *status = MachineStatus::without_actor(state, reason, every_ms, process);
            drop(status);
            has_ended.send_replace(true);
        };
        match end {
            End::Stop(reply) => {
                vm.into_inner().quit();
                note(Lifecycle::Gone, "it was stopped");
                let _ = reply.send(Ok(()));
            }
            End::Detach(reply) => {
                // Disks of a machine that Retrovisor started keep what its checkpoints refer to.
                let left = match vm.into_inner().detach(spec.origin == Origin::Attached) {
                    Ok(()) => Vec::new(),
                    Err(error) => vec![error.to_string()],
                };
                note(Lifecycle::Detached, "");
                let _ = reply.send(Ok(left));
            }
            // Its disks keep what the checkpoints refer to: the next daemon attaches it again.
            End::Shutdown if spec.origin == Origin::Attached => {
                if let Err(error) = vm.into_inner().detach(false) {
                    tracing::warn!(machine = name, %error, "something stays in the machine's process");
                }
            }
            End::Shutdown => drop(vm),
            End::Lost => {
                let lost = lock(&status).clone();
                if lost.state == Lifecycle::Unreachable
                    && let Err(error) = vm.make_independent()
                {
                    tracing::warn!(machine = name, %error, "a process that does not answer ends with its connection");
                }
                drop(vm);
                note(lost.state, &lost.reason);
            }
        }
    }

    fn serve(&mut self, inbox: &Receiver<Command>) -> End {
        if let Some(first) = self.unevaluated.take() {
            self.evaluate(*first);
        }
        let mut next = Instant::now() + self.step();
        loop {
            // Also one that did not answer any more as soon as it was up.
            if !self.state.has_actor() {
                return End::Lost;
            }
            match inbox.recv_deadline(next.min(Instant::now() + POLL_INTERVAL)) {
                // Its caller got the answer that the machine does not answer, or has gone.
                Ok(command) if command.is_abandoned() => {}
                Ok(Command::Shutdown) | Err(RecvTimeoutError::Disconnected) => return End::Shutdown,
                Ok(Command::Stop { force, reply }) => match self.prepare_stop(force) {
                    Ok(()) => return End::Stop(reply),
                    Err(error) => drop(reply.send(Err(error))),
                },
                Ok(Command::Detach { reply }) => match self.prepare_detach() {
                    Ok(()) => return End::Detach(reply),
                    Err(error) => drop(reply.send(Err(error))),
                },
                Ok(command) => {
                    // A machine that was just rolled back runs for a whole interval before its next checkpoint.
                    if self.handle(command) {
                        next = Instant::now() + self.step();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let is_due = Instant::now() >= next;
                    self.poll(is_due);
                    if is_due {
                        // A slow disk stretches the interval: checkpoints that were due meanwhile are not made up for.
                        next = (next + self.step()).max(Instant::now() + self.step() / 4);
                    }
                }
            }
        }
    }

    fn step(&self) -> Duration {
        self.spec.interval().unwrap_or(POLL_INTERVAL)
    }

    /// Observes the machine and takes the regular checkpoint if it is due.
    fn poll(&mut self, is_due: bool) {
        self.observe();
        if self.state != Lifecycle::Running {
            return;
        }
        if !self.spec.interfaces().is_empty() {
            let links = self.vm.links();
            lock(&self.status).links = links;
        }
        if is_due && self.spec.interval().is_some() {
            let taken = self.checkpoint(None, CheckpointKind::Automatic);
            let failure = taken.as_ref().err().map(ToString::to_string).unwrap_or_default();
            lock(&self.status).checkpoint_error.clone_from(&failure);
            if !failure.is_empty() {
                tracing::warn!(machine = self.name, error = failure, "checkpoint failed");
                let state = self.state;
                self.emit(EventKind::Error(format!("checkpoint failed, the machine is {state}: {failure}")));
            }
        }
    }

    /// Reads what happened to the machine since the last call, and enters the state that it is in. Returns who stopped the
    /// vCPUs meanwhile, if an event says so.
    pub(crate) fn observe(&mut self) -> Option<PausedBy> {
        let (mut paused_by, mut disk_error) = (None, String::new());
        for event in self.vm.events() {
            match &event {
                GuestEvent::DiskError { is_stopped: true, disk, reason } => {
                    paused_by = Some(PausedBy::DiskError);
                    disk_error = format!("the disk {disk} failed on the host: {reason}");
                }
                GuestEvent::Stopped if paused_by.is_none() => paused_by = Some(PausedBy::Other),
                _ => {}
            }
            self.emit(EventKind::Guest(event));
        }
        let run_state = self.vm.run_state();
        let observed = self.state.observed(run_state, paused_by, || self.driver.is_alive(&self.vm.process()));
        if observed == self.state {
            return paused_by;
        }
        let reason = match observed {
            Lifecycle::PoweredOff => "its guest powered itself off",
            Lifecycle::Panicked => "its guest's kernel panicked",
            Lifecycle::Unreachable => "its process does not answer",
            Lifecycle::Gone => "its process ended",
            Lifecycle::Paused(PausedBy::DiskError) if disk_error.is_empty() => "a disk failed on the host",
            Lifecycle::Paused(PausedBy::DiskError) => &disk_error,
            _ => "",
        };
        self.enter(observed, reason.to_owned());
        self.emit(EventKind::State(observed, reason.to_owned()));
        paused_by
    }

    /// Sets the guest running after a command that paused it.
    pub(crate) fn run_on(&mut self) -> Result<(), ManagerError> {
        let Err(error) = self.vm.resume() else { return Ok(()) };
        self.observe_failure();
        if self.state == Lifecycle::Running { Ok(()) } else { Err(error.into()) }
    }

    /// After a command that failed: observes the machine, and ends a pause of that command which nobody else asked for.
    pub(crate) fn observe_failure(&mut self) {
        let was_running = self.state == Lifecycle::Running;
        let paused_by = self.observe();
        if was_running && self.state == Lifecycle::Paused(PausedBy::Other) && paused_by.is_none() {
            match self.vm.resume() {
                Ok(()) => self.enter(Lifecycle::Running, String::new()),
                Err(error) => self.enter(self.state, format!("it cannot be resumed: {error}")),
            }
        }
    }

    /// Enters a state. Who paused a machine is kept in the store, so that it stays paused over a restart of the daemon.
    pub(crate) fn enter(&mut self, state: Lifecycle, reason: String) {
        self.state = state;
        {
            let mut status = lock(&self.status);
            (status.state, status.reason) = (state, reason);
        }
        let paused_by = if let Lifecycle::Paused(by) = state { Some(by) } else { None };
        if self.spec.paused_by != paused_by && state.has_actor() {
            self.spec.paused_by = paused_by;
            self.save_spec();
        }
    }

    /// Writes the spec to the catalogue. A failure is logged: the machine itself is not affected.
    pub(crate) fn save_spec(&self) {
        let saved = self
            .spec
            .to_runtime()
            .and_then(|runtime| Ok(self.store.catalogue().set_runtime(self.id, &runtime)?));
        if let Err(error) = saved {
            tracing::warn!(machine = self.name, %error, "cannot write how the machine is found again");
        }
    }

    /// Keeps what the user wants the machine to be.
    pub(crate) fn set_desired(&self, desired: DesiredState) {
        if let Err(error) = self.store.catalogue().set_desired_state(self.id, desired) {
            tracing::warn!(machine = self.name, %error, "cannot write the desired state of the machine");
        }
    }

    pub(crate) fn emit(&self, kind: EventKind) {
        event::keep(&self.store, self.id, &kind);
        event::emit(&self.events, &self.name, kind);
    }
}

/// The status is whole after every statement, also when a thread panicked.
pub(crate) fn lock(status: &Mutex<MachineStatus>) -> std::sync::MutexGuard<'_, MachineStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
