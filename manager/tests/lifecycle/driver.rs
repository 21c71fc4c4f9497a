//! A driver whose processes are in memory. It counts them, can refuse to be attached to, and lets a script act on each call
//! of a machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::{
    Attach, BLOCK_SIZE, DRIVER_DEFAULT, Driver, DriverFeatures, Launch, LaunchSpec, Lifespan, MachineError,
    MemoryLayout, ProcessIdentity, RunState, Start, Vm,
};
use retrovisor_scripted::{Action, MemoryMachine, Method, Script};

use crate::test_vm::TestVm;

/// That of the driver which attaches to what others started.
pub(crate) const NAME: &str = DRIVER_DEFAULT;

/// The processes of a host.
#[derive(Clone, Default)]
pub(crate) struct Host(Arc<Shared>);

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Acts on the calls of the driver itself.
    calls: Script,
}

#[derive(Default)]
struct Inner {
    processes: BTreeMap<i32, Process>,
    pids: i32,
    /// Why nothing can be attached to.
    attach_error: Option<String>,
    /// What the script of the next machine that is launched is to do.
    next: Vec<(Method, u64, Action)>,
    /// Machines whose written pages get wrong bytes, once.
    corrupted: Vec<String>,
    /// A launch waits while this is set.
    launch_waits: bool,
}

struct Process {
    name: String,
    /// Where it listens.
    socket: PathBuf,
    script: Script,
    /// The machine, while nobody is connected.
    machine: Option<MemoryMachine>,
}

impl Host {
    /// Starts a process that is not launched by the manager, and listens at `socket`.
    pub(crate) fn start(&self, name: &str, socket: &Path, memory_bytes: u64) -> i32 {
        let machine = machine(name, memory_bytes);
        let pid = self.add(name, socket.to_owned(), &machine);
        self.lock().processes.get_mut(&pid).unwrap().machine = Some(machine);
        pid
    }

    /// The numbers of all processes that run.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.lock().processes.keys().copied().collect()
    }

    /// What acts on the machine of that name.
    pub(crate) fn script(&self, name: &str) -> Script {
        self.find_script(name).expect("it has a process")
    }

    /// The same, if it has a process.
    pub(crate) fn find_script(&self, name: &str) -> Option<Script> {
        let inner = self.lock();
        let process = inner.processes.values().find(|process| process.name == name);
        process.map(|process| process.script.clone())
    }

    /// Ends the process of that name, as `kill -9` does.
    pub(crate) fn kill_by_name(&self, name: &str) {
        let mut inner = self.lock();
        inner.processes.retain(|_, process| {
            if process.name == name {
                process.script.enter(RunState::Gone);
            }
            process.name != name
        });
    }

    pub(crate) fn refuse_attach(&self, why: Option<&str>) {
        self.lock().attach_error = why.map(str::to_owned);
    }

    /// Acts on a call of the next machine that is launched.
    pub(crate) fn on_next_launched(&self, method: Method, nth: u64, action: Action) {
        self.lock().next.push((method, nth, action));
    }

    /// What acts on the calls of the driver itself.
    pub(crate) fn calls(&self) -> &Script {
        &self.0.calls
    }

    /// Forgets what was to happen, in all processes.
    pub(crate) fn clear(&self) {
        self.0.calls.clear();
        let mut inner = self.lock();
        (inner.attach_error, inner.next) = (None, Vec::new());
        inner.processes.values().for_each(|process| process.script.clear());
    }

    /// Whether a machine of that name has a process.
    pub(crate) fn has_process(&self, name: &str) -> bool {
        self.lock().processes.values().any(|process| process.name == name)
    }

    /// A connection to a process ends, and gives the machine back or ends the process.
    pub(crate) fn end_connection(&self, pid: i32, machine: Option<MemoryMachine>, goes_on: bool) {
        let mut inner = self.lock();
        if !goes_on {
            inner.processes.remove(&pid);
        } else if let Some(process) = inner.processes.get_mut(&pid) {
            process.machine = machine;
        }
    }

    /// Whether the memory of that machine is to be changed now.
    pub(crate) fn takes_corruption(&self, name: &str) -> bool {
        let mut inner = self.lock();
        let at = inner.corrupted.iter().position(|corrupted| *corrupted == name);
        at.map(|at| inner.corrupted.remove(at)).is_some()
    }

    /// Has the next state that is applied to a machine change a byte of its memory.
    pub(crate) fn corrupt_next_restore(&self, name: &str) {
        self.lock().corrupted.push(name.to_owned());
    }

    pub(crate) fn hold_launch(&self, holds: bool) {
        self.lock().launch_waits = holds;
        self.0.changed.notify_all();
    }

    fn add(&self, name: &str, socket: PathBuf, machine: &MemoryMachine) -> i32 {
        let mut inner = self.lock();
        inner.pids += 1;
        let pid = inner.pids;
        let process = Process { name: name.to_owned(), socket, script: machine.script(), machine: None };
        inner.processes.insert(pid, process);
        pid
    }

    pub(crate) fn identity(pid: i32) -> ProcessIdentity {
        ProcessIdentity { pid, start_ticks: u64::from(pid.unsigned_abs()), boot_id: "test".to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With a disk whose blocks the store keeps.
fn machine(name: &str, memory_bytes: u64) -> MemoryMachine {
    let machine = MemoryMachine::new(name, MemoryLayout::flat(memory_bytes).unwrap()).unwrap();
    machine.with_disk(vec![7; 2 * BLOCK_SIZE])
}

fn socket_of(attach: &Attach<'_>) -> PathBuf {
    attach.socket.map_or_else(|| attach.runtime_dir.join("socket"), Path::to_owned)
}

fn refused(what: &str) -> MachineError {
    MachineError::Config { what: what.to_owned(), help: "This is a test".to_owned() }
}

impl Driver for Host {
    fn name(&self) -> &'static str {
        NAME
    }
    fn features(&self) -> DriverFeatures {
        DriverFeatures::default()
    }
    fn check_host(&self) -> Result<(), MachineError> {
        Ok(())
    }
    fn check(&self, spec: &LaunchSpec) -> Result<(), MachineError> {
        if spec.memory_bytes == 0 { Err(refused("no memory")) } else { Ok(()) }
    }
    fn launch(&self, launch: &Launch<'_>) -> Result<Box<dyn Vm>, MachineError> {
        self.calls().call(Method::Launch, || Ok(()))?;
        let inner = self.lock();
        drop(self.0.changed.wait_while(inner, |inner| inner.launch_waits).unwrap());
        let machine = machine(launch.name, launch.spec.memory_bytes);
        if matches!(launch.start, Start::AwaitsState(_)) {
            machine.script().enter(RunState::Paused);
        }
        for (method, nth, action) in std::mem::take(&mut self.lock().next) {
            machine.script().on(method, nth, action);
        }
        let pid = self.add(launch.name, launch.runtime_dir.join("socket"), &machine);
        let is_independent = launch.lifespan == Lifespan::Independent;
        Ok(Box::new(TestVm::new(self, pid, machine, is_independent)))
    }
    fn find(&self, attach: &Attach<'_>) -> Result<ProcessIdentity, MachineError> {
        self.calls().call(Method::Find, || Ok(()))?;
        let socket = socket_of(attach);
        let inner = self.lock();
        let found = inner.processes.iter().find(|(_, process)| process.socket == socket);
        found.map(|(pid, _)| Self::identity(*pid)).ok_or_else(|| refused("nobody listens"))
    }
    fn attach(&self, attach: &Attach<'_>) -> Result<Box<dyn Vm>, MachineError> {
        self.calls().call(Method::Attach, || Ok(()))?;
        let pid = self.find(attach)?.pid;
        let mut inner = self.lock();
        if let Some(why) = &inner.attach_error {
            return Err(refused(why));
        }
        let process = inner.processes.get_mut(&pid).unwrap();
        let machine = process.machine.take().ok_or_else(|| refused("another client is connected"))?;
        drop(inner);
        Ok(Box::new(TestVm::new(self, pid, machine, true)))
    }
    fn is_alive(&self, process: &ProcessIdentity) -> bool {
        Self::identity(process.pid) == *process && self.lock().processes.contains_key(&process.pid)
    }
    fn kill(&self, process: &ProcessIdentity) -> Result<(), MachineError> {
        self.calls().call(Method::Kill, || Ok(()))?;
        if let Some(ended) = self.lock().processes.remove(&process.pid) {
            ended.script.enter(RunState::Gone);
        }
        Ok(())
    }
}
