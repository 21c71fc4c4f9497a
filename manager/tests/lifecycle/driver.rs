//! A driver whose processes are in memory. It counts them, can refuse to be attached to, and lets a script act on each call
//! of a machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::{
    Attach, BlockContent, Capabilities, ClockPolicy, DRIVER_DEFAULT, DirtyFinder, DiskChanges, DiskIo,
    DiskShape, DiskState, Driver, DriverFeatures, Gfn, Gpa, GuestEvent, Launch, LaunchSpec, Lifespan,
    Machine, MachineError, MachineIdentity, MachineState, MemoryIo, MemoryLayout, MemoryView, PageContent,
    PageSet, ProcessIdentity, RunState, Start, StateIo, Vm,
};
use retrovisor_scripted::{Action, MemoryMachine, Method, Script};

/// That of the driver which attaches to what others started.
pub(crate) const NAME: &str = DRIVER_DEFAULT;

/// The processes of a host.
#[derive(Clone, Default)]
pub(crate) struct Host(Arc<Shared>);

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    processes: BTreeMap<i32, Process>,
    pids: i32,
    /// Why nothing can be attached to.
    attach_error: Option<String>,
    /// A call that fails in the next machine that is launched.
    failing: Option<Method>,
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
        let machine = MemoryMachine::new(name, layout(memory_bytes)).unwrap();
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
        let inner = self.lock();
        let process = inner.processes.values().find(|process| process.name == name);
        process.expect("it has a process").script.clone()
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

    /// Has a call fail in the next machine that is launched.
    pub(crate) fn fail_next_launched(&self, method: Method) {
        self.lock().failing = Some(method);
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

    fn identity(pid: i32) -> ProcessIdentity {
        ProcessIdentity { pid, start_ticks: u64::from(pid.unsigned_abs()), boot_id: "test".to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn layout(memory_bytes: u64) -> MemoryLayout {
    MemoryLayout::flat(memory_bytes).unwrap()
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
        let inner = self.lock();
        drop(self.0.changed.wait_while(inner, |inner| inner.launch_waits).unwrap());
        let machine = MemoryMachine::new(launch.name, layout(launch.spec.memory_bytes)).unwrap();
        if launch.start == Start::AwaitsState {
            machine.script().enter(RunState::Paused);
        }
        if let Some(method) = self.lock().failing.take() {
            machine.script().on(method, 1, Action::Fail);
        }
        let pid = self.add(launch.name, launch.runtime_dir.join("socket"), &machine);
        let is_independent = launch.lifespan == Lifespan::Independent;
        Ok(Box::new(TestVm::new(self, pid, machine, is_independent)))
    }
    fn find(&self, attach: &Attach<'_>) -> Result<ProcessIdentity, MachineError> {
        let socket = socket_of(attach);
        let inner = self.lock();
        let found = inner.processes.iter().find(|(_, process)| process.socket == socket);
        found.map(|(pid, _)| Self::identity(*pid)).ok_or_else(|| refused("nobody listens"))
    }
    fn attach(&self, attach: &Attach<'_>) -> Result<Box<dyn Vm>, MachineError> {
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
        self.lock().processes.remove(&process.pid);
        Ok(())
    }
}

/// A connection to a process.
struct TestVm {
    host: Host,
    pid: i32,
    identity: MachineIdentity,
    /// Present until the connection ends.
    machine: Option<MemoryMachine>,
    is_independent: bool,
    /// The first call reports every frame.
    is_unknown: bool,
}

impl TestVm {
    fn new(host: &Host, pid: i32, machine: MemoryMachine, is_independent: bool) -> Self {
        let identity = MachineIdentity { driver: NAME.to_owned(), ..machine.identity().clone() };
        Self { host: host.clone(), pid, identity, machine: Some(machine), is_independent, is_unknown: true }
    }
    fn machine(&self) -> &MemoryMachine {
        self.machine.as_ref().unwrap()
    }
    fn machine_mut(&mut self) -> &mut MemoryMachine {
        self.machine.as_mut().unwrap()
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        let mut inner = self.host.lock();
        if self.is_independent {
            if let Some(process) = inner.processes.get_mut(&self.pid) {
                process.machine = self.machine.take();
            }
        } else {
            inner.processes.remove(&self.pid);
        }
    }
}

impl Vm for TestVm {
    fn process(&self) -> ProcessIdentity {
        Host::identity(self.pid)
    }
    fn dirty_finder(&self) -> DirtyFinder {
        DirtyFinder { name: "memory", reason: "it is a test".to_owned() }
    }
    fn make_independent(&mut self) -> Result<(), MachineError> {
        self.is_independent = true;
        Ok(())
    }
    fn quit(mut self: Box<Self>) {
        self.is_independent = false;
    }
}

impl Machine for TestVm {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }
    fn capabilities(&self) -> Capabilities {
        self.machine().capabilities()
    }
    fn run_state(&mut self) -> RunState {
        self.machine_mut().run_state()
    }
    fn pause(&mut self) -> Result<(), MachineError> {
        self.machine_mut().pause()
    }
    fn resume(&mut self) -> Result<(), MachineError> {
        self.machine_mut().resume()
    }
    fn events(&mut self) -> Vec<GuestEvent> {
        self.machine_mut().events()
    }
}

impl MemoryIo for TestVm {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.machine_mut().take_dirty(into)?;
        if std::mem::take(&mut self.is_unknown) {
            into.union(&PageSet::full(&self.identity.layout));
        }
        Ok(())
    }
    fn memory(&self) -> &dyn MemoryView {
        self.machine().memory()
    }
    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        self.machine_mut().write_page(gfn, content)
    }
}

impl StateIo for TestVm {
    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.machine_mut().capture_state()
    }
    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.machine_mut().sync_state(state)
    }
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        // Disks of a process end with it here: a new one has none to put back.
        let state = MachineState { disks: Vec::new(), ..state.clone() };
        self.machine_mut().apply_state(&state, clock)?;
        let name = self.identity.name.clone();
        let mut inner = self.host.lock();
        if let Some(at) = inner.corrupted.iter().position(|corrupted| *corrupted == name) {
            inner.corrupted.remove(at);
            drop(inner);
            self.machine_mut().poke(Gpa(0), b"wrong")?;
        }
        Ok(())
    }
    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.machine_mut().release_state(state)
    }
}

impl DiskIo for TestVm {
    fn disks(&self) -> &[DiskShape] {
        self.machine().disks()
    }
    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        self.machine().disk_changes(at, since)
    }
    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        self.machine_mut().retained_disks()
    }
    fn retains_disks(&mut self, _: &MachineState) -> Result<bool, MachineError> {
        Ok(true)
    }
    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        self.machine_mut().write_blocks(disk, first, contents)
    }
}
