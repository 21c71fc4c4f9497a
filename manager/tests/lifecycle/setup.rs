//! A store, a manager over a host in memory, and machines brought into each state.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_guest::{Drivers, GuestEvent, LaunchSpec, RunState};
use retrovisor_manager::{
    Command, Lifecycle, MachineSpec, MachineStatus, Manager, ManagerError, PausedBy, Reply, Rollback,
};
use retrovisor_scripted::{Action, Method};
use retrovisor_snapshot::{
    Access, CheckpointId, CheckpointRecord, OperationStatus, RecorderSettings, RollbackRequest, Store,
};

use crate::driver::{Host, NAME};

pub(crate) const MEMORY_BYTES: u64 = 16 * 4096;
/// How long a machine may take to enter a state.
const STATE_WAIT: Duration = Duration::from_secs(20);

/// Waits for an answer of the manager.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

pub(crate) fn launch_spec() -> LaunchSpec {
    LaunchSpec {
        kernel: PathBuf::from("/kernel"),
        initrd: None,
        append: String::new(),
        disks: Vec::new(),
        memory_bytes: MEMORY_BYTES,
        vcpus: 1,
        driver: NAME.to_owned(),
        accelerator: None,
        interfaces: Vec::new(),
        channel: false,
    }
}

/// In memory where the host has such a place: what is tested here does not depend on a disk.
fn tempdir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// A daemon with its store and the host that it runs on.
pub(crate) struct Daemon {
    pub(crate) host: Host,
    pub(crate) manager: Arc<Manager>,
    pub(crate) dir: tempfile::TempDir,
}

impl Daemon {
    pub(crate) fn new() -> Self {
        Self::with(|manager| manager)
    }

    /// The same, with a manager that `change` returns.
    pub(crate) fn with(change: impl FnOnce(Manager) -> Manager) -> Self {
        let dir = tempdir();
        let host = Host::default();
        let manager = Arc::new(change(Self::manager(&dir, &host)));
        Self { host, manager, dir }
    }

    fn manager(dir: &tempfile::TempDir, host: &Host) -> Manager {
        let store = Store::open(dir.path(), Access::Create).unwrap();
        let drivers = Drivers::new().with(host.clone());
        let settings = RecorderSettings { staging_bytes_max: 1 << 20, ..RecorderSettings::default() };
        Manager::new(Arc::new(store), dir.path(), settings, drivers)
    }

    /// Ends the daemon in order, and starts another one. Returns what it says of the machines.
    pub(crate) fn restart(&mut self) -> Vec<String> {
        self.restart_with(|manager| manager)
    }

    /// The same, with a manager that `change` returns.
    pub(crate) fn restart_with(&mut self, change: impl FnOnce(Manager) -> Manager) -> Vec<String> {
        self.manager.detach_all();
        // The store is closed with the last user of it.
        let store = Arc::downgrade(self.manager.store());
        let nothing = tempfile::tempdir().unwrap();
        self.manager = Arc::new(Self::manager(&nothing, &self.host));
        let began = Instant::now();
        while store.strong_count() > 0 {
            assert!(began.elapsed() < STATE_WAIT, "the store stays open");
            std::thread::sleep(Duration::from_millis(2));
        }
        self.manager = Arc::new(change(Self::manager(&self.dir, &self.host)));
        self.manager.reattach_all()
    }

    pub(crate) fn run(&self, name: &str) -> Result<(), ManagerError> {
        self.manager.run(name, &MachineSpec::launched(launch_spec(), 0))
    }

    pub(crate) fn ask<T>(
        &self,
        name: &str,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, ManagerError> {
        wait(self.manager.ask(name, command))
    }

    pub(crate) fn checkpoint(&self, name: &str) -> Result<CheckpointRecord, ManagerError> {
        self.ask(name, |reply| Command::Checkpoint { label: None, reply })
    }

    /// Takes a machine to a checkpoint: by its actor, or in a new process.
    pub(crate) fn rollback(
        &self,
        name: &str,
        target: CheckpointId,
        verify_image: bool,
    ) -> Result<Rollback, ManagerError> {
        let request = RollbackRequest::default();
        if self.manager.is_managed(name) {
            return self.ask(name, |reply| Command::Rollback { target, verify_image, request, reply });
        }
        self.manager.restore(name, target, verify_image, request.clock)
    }

    pub(crate) fn pause(&self, name: &str, by: PausedBy) -> Result<(), ManagerError> {
        self.ask(name, |reply| Command::Pause { by, reply })
    }

    pub(crate) fn resume(&self, name: &str) -> Result<(), ManagerError> {
        self.ask(name, |reply| Command::Resume { reply })
    }

    pub(crate) fn stop(&self, name: &str, force: bool) -> Result<(), ManagerError> {
        wait(self.manager.stop(name, force))
    }

    pub(crate) fn status(&self, name: &str) -> MachineStatus {
        self.manager.status(name).unwrap()
    }

    pub(crate) fn state(&self, name: &str) -> Lifecycle {
        self.status(name).state
    }

    pub(crate) fn newest(&self, name: &str) -> CheckpointId {
        let catalogue = self.manager.store().catalogue();
        catalogue.checkpoints(catalogue.machine(name).unwrap().id).unwrap().last().unwrap().id
    }

    /// Has the machine observed, which a command does that is refused or not.
    pub(crate) fn observe(&self, name: &str) {
        // The store has no such checkpoint.
        let request = RollbackRequest::default();
        let target = CheckpointId(i64::MAX);
        let refused =
            self.ask(name, |reply| Command::Rollback { target, verify_image: false, request, reply });
        refused.unwrap_err();
    }

    pub(crate) fn wait_for(&self, name: &str, state: Lifecycle) {
        let began = Instant::now();
        while self.state(name) != state {
            assert!(began.elapsed() < STATE_WAIT, "{name} is {:?}, not {state}", self.status(name));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until an actor has finished what nobody waits for any more, or has ended.
    pub(crate) fn settle(&self, name: &str) {
        if self.manager.is_managed(name) {
            let every_ms = self.status(name).every_ms;
            // Answered in order; an actor that ends first does not answer.
            drop(wait(self.manager.set_interval(name, every_ms)));
        }
    }

    /// Starts a machine and brings it into a state. It has a rollback that can be undone.
    pub(crate) fn bring_into(&self, name: &str, state: Lifecycle) {
        self.run(name).unwrap();
        let first = self.checkpoint(name).unwrap();
        self.rollback(name, first.id, false).unwrap();
        let script = self.host.script(name);
        match state {
            Lifecycle::Running => {}
            Lifecycle::Paused(by @ (PausedBy::User | PausedBy::Policy)) => self.pause(name, by).unwrap(),
            Lifecycle::Paused(PausedBy::DiskError) => {
                script.enter(RunState::Paused);
                script.report(GuestEvent::DiskError {
                    disk: "d0".to_owned(),
                    reason: "no space".to_owned(),
                    is_stopped: true,
                });
            }
            Lifecycle::Paused(PausedBy::Other) => {
                script.enter(RunState::Paused);
                script.report(GuestEvent::Stopped);
            }
            Lifecycle::PoweredOff => script.enter(RunState::PoweredOff),
            Lifecycle::Panicked => script.enter(RunState::Panicked),
            Lifecycle::Unreachable => {
                self.host.refuse_attach(Some("it is busy"));
                script.on(Method::RunState, 1, Action::Fail);
            }
            Lifecycle::Failed => {
                script.on(Method::ApplyState, 1, Action::FailAfter);
                script.on(Method::ApplyState, 2, Action::FailAfter);
                self.rollback(name, first.id, false).unwrap_err();
            }
            Lifecycle::Detached => assert!(wait(self.manager.detach(name)).unwrap().is_empty()),
            Lifecycle::Gone => self.stop(name, false).unwrap(),
            Lifecycle::Starting => unreachable!("a machine is started by somebody else meanwhile"),
        }
        if state.has_actor() || state == Lifecycle::Unreachable {
            self.observe(name);
        }
        self.wait_for(name, state);
    }

    /// What holds whatever was done: no operation is left started, and what is stored is whole.
    pub(crate) fn check(&self) {
        let store = self.manager.store();
        for machine in store.catalogue().machines().unwrap() {
            for operation in store.catalogue().operations(machine.id).unwrap() {
                assert_ne!(operation.status, OperationStatus::Started, "{operation:?}");
            }
        }
        let report = store.verify(&mut |_| {}).unwrap();
        assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    }
}
