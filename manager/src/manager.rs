use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::{
    Attach, ClockPolicy, Driver, Drivers, Launch, Lifespan, Network, Start, Vm, check_name,
};
use retrovisor_introspect::Introspector;
use retrovisor_snapshot::{CheckpointId, MachineRecord, Recorder, RecorderSettings, Store};
use tokio::sync::{broadcast, oneshot};

use crate::actor::{ActorHandle, Arrival, MachineActor};
use crate::command::Command;
use crate::error::ManagerError;
use crate::event::Event;
use crate::kernels::kernel_library;
use crate::rollback::Rollback;
use crate::spec::{MachineSpec, Origin};
use crate::status::MachineStatus;

/// Events that a slow watcher may be behind before it misses some.
const EVENTS_MAX: usize = 1024;

/// All machines of one store: started, attached, checkpointed and rolled back by one actor thread each.
pub struct Manager {
    pub(crate) store: Arc<Store>,
    root: PathBuf,
    /// How each machine is recorded.
    settings: RecorderSettings,
    drivers: Drivers,
    actors: Mutex<BTreeMap<String, ActorHandle>>,
    /// Names of machines that are being started.
    reservations: Mutex<BTreeSet<String>>,
    events: broadcast::Sender<Event>,
}

/// A name that nobody else can take until this is dropped.
pub(crate) struct Reservation<'a> {
    manager: &'a Manager,
    name: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.manager.reservations().remove(self.name);
    }
}

impl Manager {
    /// Manages the machines of `store`. Nothing is started or attached yet: see [`Self::reattach_all`].
    /// Sockets, overlays and logs of machines are below `root`.
    pub fn new(store: Arc<Store>, root: &Path, settings: RecorderSettings, drivers: Drivers) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (actors, reservations) = (Mutex::default(), Mutex::default());
        Self { store, root: root.to_owned(), settings, drivers, actors, reservations, events }
    }

    /// The store that the machines are recorded in.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Events of all machines from now on. A receiver that lags too far behind misses the oldest.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What is known of a live machine, or `None` when it has no actor.
    pub fn status(&self, name: &str) -> Option<MachineStatus> {
        self.actors().get(name).filter(|actor| actor.alive()).map(ActorHandle::status)
    }

    /// Starts a virtual machine and its actor. Blocks until the first checkpoint is durable.
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
        let _reservation = self.reserve(name)?;
        let machine = self.launch(name, spec, Start::Boots, lifespan(spec))?;
        let answer = ready(&*machine)?;
        self.start_actor(name, machine, spec, Arrival::New)?;
        Ok(answer)
    }

    /// Attaches a QEMU that runs already. Blocks until the first checkpoint is durable.
    pub fn attach(&self, name: &str, spec: &MachineSpec) -> Result<(), ManagerError> {
        let _reservation = self.reserve(name)?;
        let machine = self.connect(name, spec)?;
        self.start_actor(name, machine, spec, Arrival::New)
    }

    /// Starts a new process for a machine whose process is gone, with the state of a checkpoint.
    pub fn restore(
        &self,
        name: &str,
        target: CheckpointId,
        verify_image: bool,
        clock: ClockPolicy,
    ) -> Result<Rollback, ManagerError> {
        let _reservation = self.reserve(name)?;
        let record = self.store.catalogue().machine(name)?;
        let spec = MachineSpec::from_runtime(name, &record.runtime)?;
        if spec.origin == Origin::Attached {
            return Err(ManagerError::Refused {
                what: format!("{name} is gone, and it was not started by Retrovisor"),
                help: "Start its QEMU again as before and attach it under a new name.".to_owned(),
            });
        }
        let machine = self.launch(name, &spec, Start::AwaitsState, lifespan(&spec))?;
        let (arrived, rollback) = oneshot::channel();
        self.start_actor(name, machine, &spec, Arrival::Restore { target, verify_image, clock, arrived })?;
        rollback.blocking_recv().map_err(|_| ManagerError::Gone { machine: name.to_owned() })
    }

    /// Reads the memory of a checkpoint that was imported and records the facts. Returns why little was found, if so.
    pub fn read(&self, checkpoint: CheckpointId) -> Result<Option<String>, ManagerError> {
        let view = self.store.view(checkpoint)?;
        let observation = Introspector::with_library(kernel_library(&self.store))
            .observe(&view, &self.store.registers(checkpoint)?);
        self.store.catalogue().record_facts(checkpoint, &observation.tables())?;
        Ok(observation.reason)
    }

    /// After a restart of the daemon: attaches the machines that still run. Returns one line each for the user.
    pub fn reattach_all(&self) -> Vec<String> {
        let mut lines = self.clear_half_branches();
        let records = match self.store.catalogue().machines() {
            Ok(records) => records,
            Err(error) => {
                lines.push(format!("cannot list the machines: {error}"));
                return lines;
            }
        };
        for record in records {
            let Ok(spec) = MachineSpec::from_runtime(&record.name, &record.runtime) else { continue };
            let Ok(mut machine) = self.connect(&record.name, &spec) else { continue };
            if machine.run_state().has_ended() {
                continue;
            }
            lines.push(match self.reattach(&record, machine, &spec) {
                Ok(()) => format!("{} still runs and is managed again", record.name),
                Err(error) => format!("{} still runs, but cannot be attached: {error}", record.name),
            });
        }
        lines
    }

    /// Starts the actor of a machine that still runs. If its last rollback was cut off, its memory is half written: the
    /// rollback is done again.
    fn reattach(
        &self,
        record: &MachineRecord,
        machine: Box<dyn Vm>,
        spec: &MachineSpec,
    ) -> Result<(), ManagerError> {
        let arrival =
            match self.store.catalogue().interrupted(record.id)?.and_then(|operation| operation.after) {
                Some(position) => Arrival::Restore {
                    target: position.checkpoint,
                    verify_image: false,
                    clock: ClockPolicy::StandStill,
                    arrived: oneshot::channel().0,
                },
                None => Arrival::Reattached,
            };
        self.start_actor(&record.name, machine, spec, arrival)
    }

    /// Ends all actors and waits for them. Machines that were started or attached to outlive this process go on.
    pub fn detach_all(&self) {
        let actors = std::mem::take(&mut *self.actors());
        actors.into_values().for_each(ActorHandle::detach);
    }

    /// Sends a command to a machine's actor and waits for the answer.
    pub async fn ask<T>(
        &self,
        name: &str,
        command: impl FnOnce(oneshot::Sender<Result<T, ManagerError>>) -> Command,
    ) -> Result<T, ManagerError> {
        let (reply, answer) = oneshot::channel();
        let gone = || ManagerError::Gone { machine: name.to_owned() };
        {
            let actors = self.actors();
            let Some(actor) = actors.get(name).filter(|actor| actor.alive()) else {
                self.store.catalogue().machine(name)?;
                return Err(gone());
            };
            actor.send(command(reply)).map_err(|()| gone())?;
        }
        answer.await.map_err(|_| gone())?
    }

    fn start_actor(
        &self,
        name: &str,
        machine: Box<dyn Vm>,
        spec: &MachineSpec,
        arrival: Arrival,
    ) -> Result<(), ManagerError> {
        self.start_actor_with(name, machine, spec, arrival, None)
    }

    pub(crate) fn start_actor_with(
        &self,
        name: &str,
        machine: Box<dyn Vm>,
        spec: &MachineSpec,
        arrival: Arrival,
        recorder: Option<Recorder>,
    ) -> Result<(), ManagerError> {
        let actor = MachineActor::new(
            Arc::clone(&self.store),
            machine,
            spec,
            &arrival,
            recorder,
            &self.settings,
            self.events.clone(),
        )?;
        let handle = actor.start(arrival)?;
        self.actors().insert(name.to_owned(), handle);
        Ok(())
    }

    /// The drivers that machines are started and attached with.
    pub fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    /// The driver of that name; the empty name and `auto` stand for the preferred one that this host can run.
    pub fn choose_driver(&self, name: &str) -> Result<&Arc<dyn Driver>, ManagerError> {
        if matches!(name, "" | "auto") {
            return self.drivers.preferred().ok_or_else(|| ManagerError::Refused {
                what: "no driver can run a machine on this host".to_owned(),
                help: "Name one with --driver to learn what it lacks.".to_owned(),
            });
        }
        let driver = self.driver(name)?;
        driver.check_host()?;
        Ok(driver)
    }

    pub(crate) fn driver(&self, name: &str) -> Result<&Arc<dyn Driver>, ManagerError> {
        self.drivers.get(name).ok_or_else(|| {
            let names = self.drivers.names().collect::<Vec<_>>().join(", ");
            ManagerError::Invalid(format!(
                "there is no driver `{}`: use {names} or auto",
                name.escape_debug()
            ))
        })
    }

    /// Refuses a spec that cannot be launched, before anything is started or written.
    fn check_spec(&self, spec: &MachineSpec) -> Result<(), ManagerError> {
        for interface in spec.interfaces() {
            if let Network::Hub(hub) = &interface.network {
                check_name("hub", hub)?;
            }
        }
        Ok(self.driver(spec.driver())?.check(spec.launch()?)?)
    }

    /// Starts the process of a machine.
    pub(crate) fn launch(
        &self,
        name: &str,
        spec: &MachineSpec,
        start: Start,
        lifespan: Lifespan,
    ) -> Result<Box<dyn Vm>, ManagerError> {
        self.check_spec(spec)?;
        let runtime_dir = self.runtime_dir(name);
        let launch = Launch { name, spec: spec.launch()?, runtime_dir: &runtime_dir, start, lifespan };
        Ok(self.driver(spec.driver())?.launch(&launch)?)
    }

    /// Connects to the process of a machine.
    pub(crate) fn connect(&self, name: &str, spec: &MachineSpec) -> Result<Box<dyn Vm>, ManagerError> {
        let runtime_dir = self.runtime_dir(name);
        let attach = Attach {
            name,
            socket: spec.qmp.as_deref(),
            runtime_dir: &runtime_dir,
            interfaces: spec.interfaces(),
        };
        Ok(self.driver(spec.driver())?.attach(&attach)?)
    }

    pub(crate) fn must_be_free(&self, name: &str) -> Result<(), ManagerError> {
        self.reserve(name).map(|_| ())
    }

    /// Reserves a name for a machine that is being started, until the answer is dropped.
    pub(crate) fn reserve<'a>(&'a self, name: &'a str) -> Result<Reservation<'a>, ManagerError> {
        check_name("machine", name)?;
        let mut reservations = self.reservations();
        if reservations.contains(name) || self.actors().get(name).is_some_and(ActorHandle::alive) {
            return Err(ManagerError::Exists { machine: name.to_owned() });
        }
        reservations.insert(name.to_owned());
        Ok(Reservation { manager: self, name })
    }

    pub(crate) fn runtime_dir(&self, name: &str) -> PathBuf {
        runtime_dir(&self.root, name)
    }

    fn actors(&self) -> MutexGuard<'_, BTreeMap<String, ActorHandle>> {
        // The map is only inserted into and looked up: a thread that panicked left it whole.
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reservations(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
