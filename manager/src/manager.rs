use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use retrovisor_guest::{ClockPolicy, Drivers, Lifespan, ProcessIdentity, Start, Vm, check_name};
use retrovisor_introspect::Introspector;
use retrovisor_snapshot::{CheckpointId, DesiredState, MachineRecord, RecorderSettings, Store};
use tokio::sync::broadcast;

use crate::actor::ActorHandle;
use crate::arrival::Arrival;
use crate::command::Command;
use crate::driver_calls::CallWait;
use crate::error::ManagerError;
use crate::evaluator::{self, MakeEvaluator};
use crate::event::Event;
use crate::kernels::kernel_library;
use crate::lifecycle::{CommandKind, Lifecycle};
use crate::process_guard::{ProcessGuard, Undo};
use crate::reservations::Reservations;
use crate::rollback::Rollback;
use crate::shape::check_shape;
use crate::spec::MachineSpec;
use crate::status::MachineStatus;

/// Events that a slow watcher may be behind before it misses some.
const EVENTS_MAX: usize = 1024;
/// How long actors may take to finish what they do when the daemon ends.
const END_WAIT: Duration = Duration::from_secs(30);

/// All machines of one store: started, attached, checkpointed and rolled back by one actor thread each.
///
/// [`crate::rule`] says what each command does in each state of a machine.
pub struct Manager {
    pub(crate) store: Arc<Store>,
    root: PathBuf,
    /// How each machine is recorded.
    pub(crate) settings: RecorderSettings,
    pub(crate) drivers: Drivers,
    pub(crate) make_evaluator: MakeEvaluator,
    /// How long a call of a driver may take.
    pub(crate) call_wait: CallWait,
    pub(crate) events: broadcast::Sender<Event>,
    /// The actors by machine; one that ended says how.
    actors: Mutex<BTreeMap<String, ActorHandle>>,
    /// Machines whose process is there and has no actor: unreachable ones.
    pub(crate) unreachable: Mutex<BTreeMap<String, MachineStatus>>,
    pub(crate) reservations: Mutex<Reservations>,
    /// The daemon ends: nothing is attached any more.
    pub(crate) is_ending: AtomicBool,
}

impl Manager {
    /// Manages the machines of `store`. Nothing is started or attached yet: see [`Self::reattach_all`].
    /// Sockets, overlays and logs of machines are below `root`.
    pub fn new(store: Arc<Store>, root: &Path, settings: RecorderSettings, drivers: Drivers) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Self {
            store,
            root: root.to_owned(),
            settings,
            drivers,
            make_evaluator: evaluator::statistical(),
            call_wait: CallWait::default(),
            events,
            actors: Mutex::default(),
            unreachable: Mutex::default(),
            reservations: Mutex::default(),
            is_ending: AtomicBool::new(false),
        }
    }

    /// The same, with other evaluators of checkpoints than those that this crate has.
    #[must_use]
    pub fn with_evaluators(self, make: MakeEvaluator) -> Self {
        Self { make_evaluator: make, ..self }
    }

    /// Sets how long a call of a driver may take until its machine counts as unreachable: 5 minutes unless it is set,
    /// which is longer than any driver waits.
    pub fn set_call_wait(&self, wait: Duration) {
        self.call_wait.set(wait);
    }

    /// The store that the machines are recorded in.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Events of all machines from now on. A receiver that lags too far behind misses the oldest.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Whether the machine has an actor, so that commands can be sent to it.
    pub fn is_managed(&self, name: &str) -> bool {
        self.actors().get(name).is_some_and(ActorHandle::accepts_commands)
    }

    /// The status of a machine of the store; for one without an actor, as far as it is known.
    pub fn status(&self, name: &str) -> Result<MachineStatus, ManagerError> {
        if lock(&self.reservations).names.contains(name) {
            return Ok(MachineStatus::without_actor(Lifecycle::Starting, "", 0, None));
        }
        if let Some(actor) = self.actors().get(name) {
            return Ok(actor.status());
        }
        if let Some(status) = lock(&self.unreachable).get(name) {
            return Ok(status.clone());
        }
        self.stored_status(&self.store.catalogue().machine(name)?)
    }

    /// Of a machine that this manager did nothing with yet.
    fn stored_status(&self, record: &MachineRecord) -> Result<MachineStatus, ManagerError> {
        let gone = MachineStatus::without_actor(Lifecycle::Gone, "", 0, None);
        // An imported machine has no spec.
        let Ok(spec) = MachineSpec::from_runtime(&record.name, &record.runtime) else { return Ok(gone) };
        let is_alive = match &spec.process {
            Some(process) if spec.is_released => self.driver(spec.driver())?.is_alive(process),
            _ => false,
        };
        let state = if is_alive { Lifecycle::Detached } else { Lifecycle::Gone };
        let reason = match record.desired_state {
            DesiredState::Stopped if !is_alive => "it was stopped",
            _ => "",
        };
        Ok(MachineStatus::without_actor(state, reason, spec.every_ms, spec.process))
    }

    /// Starts a virtual machine and its actor. Blocks until the first checkpoint is durable.
    ///
    /// A name that the store has goes on with that history, if the machine has the shape that was recorded.
    pub fn run(&self, name: &str, spec: &MachineSpec) -> Result<(), ManagerError> {
        self.run_when_ready(name, spec, |_| Ok(()))
    }

    /// Like [`Self::run`], but calls `ready` before the first checkpoint and returns its result.
    pub fn run_when_ready<T>(
        &self,
        name: &str,
        spec: &MachineSpec,
        ready: impl FnOnce(&dyn Vm) -> Result<T, ManagerError>,
    ) -> Result<T, ManagerError> {
        let _reservation = self.reserve(name, CommandKind::Run, None)?;
        let launch = spec.launch()?;
        if let Some(record) = self.known(name)? {
            check_shape(&record, &launch.driver, launch.vcpus, launch.memory_bytes)?;
        }
        let vm = self.launch(name, spec, Start::Boots, lifespan(spec))?;
        let answer = ready(&*vm)?;
        self.bring_up(vm, spec, Arrival::New, None)?;
        Ok(answer)
    }

    /// Attaches a process that runs already. Blocks until the first checkpoint is durable. Whether its guest runs is not
    /// changed.
    ///
    /// A process that the machine was detached from, or that could not be reached, is managed again as before.
    pub fn attach(&self, name: &str, spec: &MachineSpec) -> Result<(), ManagerError> {
        check_name("machine", name)?;
        let process = self.find(name, spec)?;
        let _reservation = self.reserve(name, CommandKind::Attach, Some(&process))?;
        let known = self.known(name)?;
        let stored = known.as_ref().and_then(|record| MachineSpec::from_runtime(name, &record.runtime).ok());
        let vm =
            |undo| Ok::<_, ManagerError>(ProcessGuard::new(self.connect(name, spec)?, undo, &self.call_wait));
        match (known, stored) {
            (Some(record), Some(stored)) if stored.process.as_ref() == Some(&process) => {
                let spec = MachineSpec { every_ms: spec.every_ms, qmp: spec.qmp.clone(), ..stored };
                let half_written = self.half_written(&record, &process)?;
                self.bring_up(vm(Undo::Disconnect)?, &spec, Arrival::Reattached { half_written }, None)?;
            }
            _ => {
                self.bring_up(vm(Undo::Detach)?, spec, Arrival::New, None)?;
            }
        }
        Ok(())
    }

    /// Attaches the process of a machine that is detached or unreachable again.
    pub fn attach_again(&self, name: &str) -> Result<(), ManagerError> {
        let record = self.store.catalogue().machine(name)?;
        self.attach(name, &MachineSpec::from_runtime(name, &record.runtime)?)
    }

    /// Starts a new process for a machine whose process is gone, with the state of a checkpoint. A failure leaves no
    /// process.
    pub fn restore(
        &self,
        name: &str,
        target: CheckpointId,
        verify_image: bool,
        clock: ClockPolicy,
    ) -> Result<Rollback, ManagerError> {
        let _reservation = self.reserve(name, CommandKind::Rollback, None)?;
        let record = self.store.catalogue().machine(name)?;
        let spec = MachineSpec::from_runtime(name, &record.runtime)?;
        let state = self.store.state(target)?;
        let vm = self.launch(name, &spec, Start::AwaitsState(&state), lifespan(&spec))?;
        let arrival = Arrival::Restored { target, verify_image, clock };
        self.bring_up(vm, &spec, arrival, None)?
            .ok_or_else(|| ManagerError::Gone { machine: name.to_owned() })
    }

    /// Stops a machine; `force` also when its last checkpoint fails or its process does not answer.
    pub async fn stop(&self, name: &str, force: bool) -> Result<(), ManagerError> {
        self.end_of_lost(name).await;
        let status = self.status(name)?;
        if force && status.state == Lifecycle::Unreachable {
            return self.kill_unreachable(name, &status).await;
        }
        let stopped = self.ask(name, |reply| Command::Stop { force, reply }).await;
        if force && stopped.is_err() { self.stop_lost(name).await.unwrap_or(stopped) } else { stopped }
    }

    /// Ends the process of a machine that was found not to answer while a command waited for it; `None` if it is not
    /// lost.
    async fn stop_lost(&self, name: &str) -> Option<Result<(), ManagerError>> {
        self.end_of_lost(name).await;
        match self.status(name) {
            Ok(status) if status.state == Lifecycle::Unreachable => {
                Some(self.kill_unreachable(name, &status).await)
            }
            _ => None,
        }
    }

    /// Changes the interval between automatic checkpoints, in any state; 0 for none.
    pub async fn set_interval(&self, name: &str, every_ms: u32) -> Result<(), ManagerError> {
        if self.is_managed(name) {
            return self.ask(name, |reply| Command::Set { every_ms, reply }).await;
        }
        let _reservation = self.reserve(name, CommandKind::Set, None)?;
        let record = self.store.catalogue().machine(name)?;
        let spec = MachineSpec { every_ms, ..MachineSpec::from_runtime(name, &record.runtime)? };
        Ok(self.store.catalogue().set_runtime(record.id, &spec.to_runtime()?)?)
    }

    /// Gives a machine's process back as it was found and ends its management. Returns what could not be removed from the
    /// process, in words.
    pub async fn detach(&self, name: &str) -> Result<Vec<String>, ManagerError> {
        self.end_of_lost(name).await;
        if self.is_managed(name) {
            let left = self.ask(name, |reply| Command::Detach { reply }).await?;
            // From now on the process is what the state depends on.
            self.forget_ended(name);
            return Ok(left);
        }
        let status = self.status(name)?;
        let _reservation = self.reserve(name, CommandKind::Detach, None)?;
        let record = self.store.catalogue().machine(name)?;
        let spec = MachineSpec::from_runtime(name, &record.runtime)?;
        self.store
            .catalogue()
            .set_runtime(record.id, &MachineSpec { is_released: true, ..spec }.to_runtime()?)?;
        lock(&self.unreachable).remove(name);
        self.forget_ended(name);
        let left = (status.state == Lifecycle::Unreachable)
            .then(|| "its process does not answer: everything stays in it".to_owned());
        Ok(left.into_iter().collect())
    }

    /// Reads the memory of a checkpoint that was imported and records the facts. Returns why little was found, if so.
    pub fn read(&self, checkpoint: CheckpointId) -> Result<Option<String>, ManagerError> {
        let view = self.store.view(checkpoint)?;
        let observation = Introspector::with_library(kernel_library(&self.store))
            .observe(&view, &self.store.registers(checkpoint)?);
        self.store.catalogue().record_facts(checkpoint, &observation.tables())?;
        Ok(observation.reason)
    }

    /// Ends all actors and waits for them. Machines that were started or attached to outlive this process go on.
    pub fn detach_all(&self) {
        self.is_ending.store(true, Ordering::Release);
        let actors = std::mem::take(&mut *self.actors());
        for actor in actors.values() {
            let _ = actor.send(Command::Shutdown);
        }
        let deadline = Instant::now() + END_WAIT;
        for actor in actors.into_values() {
            actor.wait_for_end(deadline);
        }
    }

    /// The machine's record, if the store has one.
    pub(crate) fn known(&self, name: &str) -> Result<Option<MachineRecord>, ManagerError> {
        Ok(self.store.catalogue().machines()?.into_iter().find(|known| known.name == name))
    }

    /// Where the machine must be taken to before it may run, if a rollback left the memory of this process half written.
    pub(crate) fn half_written(
        &self,
        record: &MachineRecord,
        process: &ProcessIdentity,
    ) -> Result<Option<CheckpointId>, ManagerError> {
        let interrupted = self.store.catalogue().interrupted(record.id)?;
        let concerned = interrupted.filter(|operation| operation.concerns_process(&process.to_string()));
        Ok(concerned.and_then(|operation| operation.after).map(|position| position.checkpoint))
    }

    /// A machine has an actor from now on.
    pub(crate) fn insert(&self, name: String, actor: ActorHandle) {
        lock(&self.unreachable).remove(&name);
        self.actors().insert(name, actor);
    }

    /// Forgets an actor that ended.
    pub(crate) fn forget_ended(&self, name: &str) {
        let mut actors = self.actors();
        if actors.get(name).is_some_and(|actor| !actor.is_alive()) {
            actors.remove(name);
        }
    }

    pub(crate) fn runtime_dir(&self, name: &str) -> PathBuf {
        runtime_dir(&self.root, name)
    }

    pub(crate) fn actors(&self) -> MutexGuard<'_, BTreeMap<String, ActorHandle>> {
        lock(&self.actors)
    }
}

/// Maps are only inserted into, removed from and looked up: a thread that panicked left them whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a process that is started for this spec lives.
fn lifespan(spec: &MachineSpec) -> Lifespan {
    if spec.detached { Lifespan::Independent } else { Lifespan::Bound }
}

/// The directory of one machine's sockets, overlays and logs, below the store's.
#[must_use]
pub fn runtime_dir(store: &Path, name: &str) -> PathBuf {
    store.join("machines").join(name)
}
