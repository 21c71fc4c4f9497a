//! Machines under care: one keeper thread each, commands to it, events from it.

mod branch;
mod command;
mod deeds;
mod error;
mod event;
mod held;
mod inject;
mod judge;
mod keeper;
mod kernels;
mod leftovers;
mod name;
mod network;
mod spec;
mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::ClockPolicy;
use retrovisor_introspect::Introspector;
use retrovisor_snapshot::{CheckpointId, MachineRecord, Recorder, RecorderSettings, Store};
use tokio::sync::{broadcast, oneshot};

pub(crate) use branch::BranchOutlook;
pub(crate) use command::{Command, Journey, Vitals};
pub(crate) use error::CareError;
pub(crate) use event::{Event, Happening};
pub(crate) use inject::Fault;
use keeper::{Arrival, Keeper, KeeperHandle};
pub(crate) use kernels::kernel_library;
use network::Hubs;
pub(crate) use network::{Interface, Network};
pub(crate) use spec::{Driver, Origin, Spec, Start, WORKER_VERB};
pub(crate) use vm::Vm;

use crate::place;

/// Events that a slow watcher may be behind before it misses some.
const EVENTS_MAX: usize = 1024;

/// All machines of one store.
pub(crate) struct Care {
    store: Arc<Store>,
    root: PathBuf,
    /// How each machine is recorded.
    settings: RecorderSettings,
    hubs: Hubs,
    keepers: Mutex<BTreeMap<String, KeeperHandle>>,
    /// Names of machines that are being started.
    making: Mutex<BTreeSet<String>>,
    events: broadcast::Sender<Event>,
}

/// A name that nobody else can take meanwhile.
struct Making<'a> {
    care: &'a Care,
    name: &'a str,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.care.making().remove(self.name);
    }
}

impl Care {
    pub(crate) fn new(store: Arc<Store>, root: &Path, settings: RecorderSettings) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (keepers, making) = (Mutex::default(), Mutex::default());
        Self { store, root: root.to_owned(), settings, hubs: Hubs::new(root), keepers, making, events }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn watch(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What is known of a live machine, or `None` when nobody keeps it.
    pub(crate) fn vitals(&self, name: &str) -> Option<Vitals> {
        self.keepers().get(name).filter(|keeper| keeper.alive()).map(KeeperHandle::vitals)
    }

    /// Starts a virtual machine and its keeper. Blocks until the first checkpoint is durable.
    pub(crate) fn run(&self, name: &str, spec: &Spec) -> Result<(), CareError> {
        self.run_when(name, spec, |_| Ok(()))
    }

    /// Like [`Self::run`], but takes the first checkpoint only when `ready` says so; returns its answer.
    pub(crate) fn run_when<T>(
        &self,
        name: &str,
        spec: &Spec,
        ready: impl FnOnce(&Vm) -> Result<T, CareError>,
    ) -> Result<T, CareError> {
        let _making = self.reserve(name)?;
        let machine = spec.launch(name, &self.runtime_dir(name), &self.hubs, Start::Runs)?;
        let answer = ready(&machine)?;
        self.keep(name, machine, spec, Arrival::Fresh)?;
        Ok(answer)
    }

    /// Takes a running QEMU into care. Blocks until the first checkpoint is durable.
    pub(crate) fn attach(&self, name: &str, spec: &Spec) -> Result<(), CareError> {
        let _making = self.reserve(name)?;
        let machine = spec.attach(name, &self.runtime_dir(name), &self.hubs)?;
        self.keep(name, machine, spec, Arrival::Fresh)
    }

    /// Starts a machine whose process is gone again, from a checkpoint.
    pub(crate) fn restore(
        &self,
        name: &str,
        target: CheckpointId,
        verify_image: bool,
        clock: ClockPolicy,
    ) -> Result<Journey, CareError> {
        let _making = self.reserve(name)?;
        let record = self.store.catalogue().machine(name)?;
        let spec = Spec::from_runtime(name, &record.runtime)?;
        if !matches!(spec.origin, Origin::Launched { .. }) {
            return Err(CareError::Refused {
                what: format!("{name} is gone, and it was not started by Retrovisor"),
                help: "Start its QEMU again as before and attach it under a new name.".to_owned(),
            });
        }
        let machine = spec.launch(name, &self.runtime_dir(name), &self.hubs, Start::AwaitsState)?;
        let (arrived, journey) = oneshot::channel();
        self.keep(name, machine, &spec, Arrival::Restore { target, verify_image, clock, arrived })?;
        journey.blocking_recv().map_err(|_| CareError::Gone { machine: name.to_owned() })
    }

    /// Reads a checkpoint that was not taken here, and records what was found. Why little was found, if so.
    pub(crate) fn read(&self, checkpoint: CheckpointId) -> Result<Option<String>, CareError> {
        let view = self.store.view(checkpoint)?;
        let observation = Introspector::with_library(kernel_library(&self.store))
            .observe(&view, &self.store.registers(checkpoint)?);
        self.store.catalogue().record_facts(checkpoint, &observation.tables())?;
        Ok(observation.reason)
    }

    /// After a restart of the daemon: takes the machines that still run into care again. One line each for the user.
    pub(crate) fn find_again(&self) -> Vec<String> {
        let mut lines = self.clear_half_branches();
        let records = match self.store.catalogue().machines() {
            Ok(records) => records,
            Err(error) => {
                lines.push(format!("cannot list the machines: {error}"));
                return lines;
            }
        };
        for record in records {
            let Ok(spec) = Spec::from_runtime(&record.name, &record.runtime) else { continue };
            let Ok(mut machine) = spec.attach(&record.name, &self.runtime_dir(&record.name), &self.hubs)
            else {
                continue;
            };
            if machine.run_state().has_ended() {
                continue;
            }
            lines.push(match self.again(&record, machine, &spec) {
                Ok(()) => format!("{} still runs and is under care again", record.name),
                Err(error) => format!("{} still runs, but cannot be taken into care: {error}", record.name),
            });
        }
        lines
    }

    /// A machine whose last move was cut off is half written: it is brought to where it was going.
    fn again(&self, record: &MachineRecord, machine: Vm, spec: &Spec) -> Result<(), CareError> {
        let arrival =
            match self.store.catalogue().interrupted(record.id)?.and_then(|operation| operation.after) {
                Some(position) => Arrival::Restore {
                    target: position.checkpoint,
                    verify_image: false,
                    clock: ClockPolicy::StandStill,
                    arrived: oneshot::channel().0,
                },
                None => Arrival::Again,
            };
        self.keep(&record.name, machine, spec, arrival)
    }

    /// Ends all keepers; the guests that outlive us go on.
    pub(crate) fn let_go(&self) {
        let keepers = std::mem::take(&mut *self.keepers());
        keepers.into_values().for_each(KeeperHandle::let_go);
    }

    /// Sends a command to a machine's keeper and waits for the answer.
    pub(crate) async fn ask<T>(
        &self,
        name: &str,
        command: impl FnOnce(oneshot::Sender<Result<T, CareError>>) -> Command,
    ) -> Result<T, CareError> {
        let (reply, answer) = oneshot::channel();
        let gone = || CareError::Gone { machine: name.to_owned() };
        {
            let keepers = self.keepers();
            let Some(keeper) = keepers.get(name).filter(|keeper| keeper.alive()) else {
                self.store.catalogue().machine(name)?;
                return Err(gone());
            };
            keeper.send(command(reply)).map_err(|()| gone())?;
        }
        answer.await.map_err(|_| gone())?
    }

    fn keep(&self, name: &str, machine: Vm, spec: &Spec, arrival: Arrival) -> Result<(), CareError> {
        self.keep_recorded(name, machine, spec, arrival, None)
    }

    fn keep_recorded(
        &self,
        name: &str,
        machine: Vm,
        spec: &Spec,
        arrival: Arrival,
        recorder: Option<Recorder>,
    ) -> Result<(), CareError> {
        let keeper = Keeper::new(
            Arc::clone(&self.store),
            machine,
            spec,
            &arrival,
            recorder,
            &self.settings,
            self.events.clone(),
        )?;
        let handle = keeper.start(arrival)?;
        self.keepers().insert(name.to_owned(), handle);
        Ok(())
    }

    fn must_be_free(&self, name: &str) -> Result<(), CareError> {
        self.reserve(name).map(|_| ())
    }

    /// Keeps others from starting a machine of that name until the answer is dropped.
    fn reserve<'a>(&'a self, name: &'a str) -> Result<Making<'a>, CareError> {
        name::check_name(name)?;
        let mut making = self.making();
        if making.contains(name) || self.keepers().get(name).is_some_and(KeeperHandle::alive) {
            return Err(CareError::Exists { machine: name.to_owned() });
        }
        making.insert(name.to_owned());
        Ok(Making { care: self, name })
    }

    fn runtime_dir(&self, name: &str) -> PathBuf {
        place::machine(&self.root, name)
    }

    fn keepers(&self) -> MutexGuard<'_, BTreeMap<String, KeeperHandle>> {
        // The map is only inserted into and looked up: a thread that panicked left it whole.
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn making(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
