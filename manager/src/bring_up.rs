//! Bringing a machine up: from a process that was started or attached to, to an actor that runs.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use retrovisor_guest::{MachineIdentity, RunState};
use retrovisor_snapshot::{CheckpointKind, DesiredState, MachineRecord, Recorder, RollbackRequest, Store};

use crate::actor::MachineActor;
use crate::arrival::Arrival;
use crate::error::ManagerError;
use crate::evaluator::Evaluations;
use crate::event::EventKind;
use crate::lifecycle::{Lifecycle, PausedBy};
use crate::manager::Manager;
use crate::process_guard::ProcessGuard;
use crate::rollback::Rollback;
use crate::shape::check_shape;
use crate::spec::MachineSpec;
use crate::status::MachineStatus;
use crate::unreferenced_disks;

/// The machine's record while it is brought up. Dropping it before [`Entry::keep`] leaves the store as it was: a record that
/// was added is removed, one that was there gets back how its machine is found.
struct Entry<'a> {
    store: &'a Store,
    record: MachineRecord,
    is_new: bool,
    is_kept: bool,
}

impl<'a> Entry<'a> {
    fn open(store: &'a Store, identity: &MachineIdentity) -> Result<Self, ManagerError> {
        let catalogue = store.catalogue();
        let known = catalogue.machines()?.into_iter().find(|known| known.name == identity.name);
        let is_new = known.is_none();
        let record = match known {
            Some(known) => {
                check_shape(&known, &identity.driver, identity.vcpus, identity.layout.bytes())?;
                known
            }
            None => catalogue.add_machine(identity)?,
        };
        Ok(Self { store, record, is_new, is_kept: false })
    }

    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let (catalogue, id) = (self.store.catalogue(), self.record.id);
        let restored = if self.is_new {
            catalogue.remove_empty_machine(id).and_then(|()| match catalogue.machine_by_id(id) {
                // Its first checkpoint was taken already.
                Ok(_) => self.store.remove_machine(id, &mut |_| ControlFlow::Continue(())).map(drop),
                Err(_) => Ok(()),
            })
        } else {
            catalogue.set_runtime(id, &self.record.runtime)
        };
        if let Err(error) = restored {
            tracing::warn!(machine = self.record.name, %error, "the record of a machine that did not start stays");
        }
    }
}

impl Manager {
    /// Brings a machine up and starts its actor. A failure leaves no process that was started, nothing in one that was
    /// attached to, and the store as it was but for checkpoints and operations that failed.
    pub(crate) fn bring_up(
        &self,
        vm: ProcessGuard,
        spec: &MachineSpec,
        arrival: Arrival,
        recorder: Option<Recorder>,
    ) -> Result<Option<Rollback>, ManagerError> {
        let identity = vm.identity().clone();
        let catalogue = self.store.catalogue();
        let entry = Entry::open(&self.store, &identity)?;
        let id = entry.record.id;
        let process = vm.process();
        // What pauses it is known once it is up; after an interrupted pause, what was known before.
        let spec = MachineSpec { process: Some(process.clone()), is_released: false, ..spec.clone() };
        catalogue.set_runtime(id, &spec.to_runtime()?)?;
        let store = Arc::clone(&self.store);
        let settings = self.settings.clone();
        let mut recorder = match (recorder, &arrival) {
            (Some(recorder), _) => recorder,
            (None, Arrival::New) => Recorder::fresh_with(store, id, settings)?,
            (None, _) => Recorder::with_settings(store, id, settings)?,
        };
        recorder.set_process(process.to_string());
        let status = MachineStatus {
            state: Lifecycle::Starting,
            reason: String::new(),
            checkpoint_error: String::new(),
            every_ms: spec.every_ms,
            console: vm.console(),
            console_log: vm.console_log(),
            dirty_finder: Some(vm.dirty_finder()),
            confinement: vm.confinement(),
            audit: None,
            links: if spec.interfaces().is_empty() { Vec::new() } else { vm.links() },
            process: Some(process),
        };
        let name = identity.name.clone();
        let mut actor = MachineActor {
            id,
            driver: Arc::clone(self.driver(spec.driver())?),
            evaluations: Evaluations::new(Arc::clone(&self.store), id, Arc::clone(&self.make_evaluator)),
            store: Arc::clone(&self.store),
            vm,
            recorder,
            spec,
            state: Lifecycle::Starting,
            unevaluated: None,
            events: self.events.clone(),
            status: Arc::new(Mutex::new(status)),
            name: name.clone(),
        };
        let rollback = actor.arrive(arrival)?;
        // Under a newer version of its driver, for example.
        let known = &entry.record.identity;
        if known.layout == identity.layout && *known != identity {
            catalogue.set_identity(id, &identity)?;
        }
        actor.vm.keep();
        entry.keep();
        self.insert(name, actor.start()?);
        Ok(rollback)
    }
}

impl MachineActor {
    /// Takes the first checkpoint, or gives the machine the state that it is to have.
    fn arrive(&mut self, arrival: Arrival) -> Result<Option<Rollback>, ManagerError> {
        match arrival {
            Arrival::New => {
                // What was attached to is left as it was found: running, or paused.
                let found = Lifecycle::Starting.observed(self.vm.run_state(), None, || false);
                if found == Lifecycle::Running {
                    self.vm.found_running();
                }
                self.checkpoint(None, CheckpointKind::Automatic)?;
                let is_paused = matches!(found, Lifecycle::Paused(_));
                self.set_desired(if is_paused { DesiredState::Paused } else { DesiredState::Running });
                self.enter(found, String::new());
                self.observe();
                Ok(None)
            }
            Arrival::Reattached { half_written } => {
                self.release_unreferenced();
                match half_written {
                    Some(target) => {
                        let restored = self.restore(target, false, &RollbackRequest::default(), false);
                        if let Err(error) = restored {
                            // It stays managed: another checkpoint may do.
                            self.enter(Lifecycle::Failed, format!("its memory is half written: {error}"));
                        }
                    }
                    None => self.take_up()?,
                }
                Ok(None)
            }
            Arrival::Restored { target, verify_image, clock } => {
                let request = RollbackRequest { clock, ..RollbackRequest::default() };
                self.vm.capabilities().check_clock(clock)?;
                Ok(Some(self.restore(target, verify_image, &request, true)?))
            }
            Arrival::Branched { first, paused } => {
                if self.spec.detached {
                    self.vm.make_independent()?;
                }
                if paused {
                    self.vm.pause()?;
                    self.set_desired(DesiredState::Paused);
                    self.enter(Lifecycle::Paused(PausedBy::User), String::new());
                } else {
                    self.vm.resume()?;
                    self.enter(Lifecycle::Running, String::new());
                }
                self.unevaluated = Some(first);
                Ok(None)
            }
        }
    }

    /// Takes up a machine that was managed before, running or paused as it is now. Only a pause of an earlier daemon that was
    /// cut off ends: that one had no reason that was kept.
    fn take_up(&mut self) -> Result<(), ManagerError> {
        let run_state = self.vm.run_state();
        let desired = self.store.catalogue().machine_by_id(self.id)?.desired_state;
        let paused_by = self.spec.paused_by.or((desired == DesiredState::Paused).then_some(PausedBy::User));
        let found = Lifecycle::Starting.observed(run_state, paused_by, || false);
        if found == Lifecycle::Gone {
            return Err(ManagerError::Gone { machine: self.name.clone() });
        }
        self.enter(found, String::new());
        if !run_state.has_ended()
            && let Err(error) = self.checkpoint(None, CheckpointKind::Automatic)
        {
            // A full disk, for example, is no reason not to manage it.
            self.emit(EventKind::Error(format!("checkpoint failed: {error}")));
        }
        if run_state == RunState::Paused && paused_by.is_none() {
            match self.vm.resume() {
                Ok(()) => self.enter(Lifecycle::Running, String::new()),
                Err(error) => self.emit(EventKind::Error(format!("cannot resume: {error}"))),
            }
        }
        self.observe();
        Ok(())
    }

    fn release_unreferenced(&mut self) {
        match unreferenced_disks::release(&mut *self.vm, self.store.catalogue(), self.id) {
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
}
