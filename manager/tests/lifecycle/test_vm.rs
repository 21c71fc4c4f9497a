//! A connection to a process of the driver in memory.

use retrovisor_guest::{
    BlockContent, Capabilities, ClockPolicy, DirtyFinder, DiskChanges, DiskIo, DiskShape, DiskState, Gfn,
    Gpa, GuestEvent, Machine, MachineError, MachineIdentity, MachineState, MemoryIo, MemoryView, PageContent,
    PageSet, ProcessIdentity, RunState, StateIo, Vm,
};
use retrovisor_scripted::{MemoryMachine, Method, Script};

use crate::driver::{Host, NAME};

/// A connection to a process.
pub(crate) struct TestVm {
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
    pub(crate) fn new(host: &Host, pid: i32, machine: MemoryMachine, is_independent: bool) -> Self {
        let identity = MachineIdentity { driver: NAME.to_owned(), ..machine.identity().clone() };
        Self { host: host.clone(), pid, identity, machine: Some(machine), is_independent, is_unknown: true }
    }
    fn machine(&self) -> &MemoryMachine {
        self.machine.as_ref().unwrap()
    }
    fn script(&self) -> Script {
        self.machine().script()
    }
    fn machine_mut(&mut self) -> &mut MemoryMachine {
        self.machine.as_mut().unwrap()
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        self.host.end_connection(self.pid, self.machine.take(), self.is_independent);
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
        self.script().call(Method::MakeIndependent, || Ok(()))?;
        self.is_independent = true;
        Ok(())
    }
    fn renew_identity(&mut self) -> Result<(), MachineError> {
        self.script().call(Method::RenewIdentity, || Ok(()))
    }
    fn detach(mut self: Box<Self>, _deletes_snapshots: bool) -> Result<(), MachineError> {
        self.is_independent = true;
        self.script().call(Method::Detach, || Ok(()))
    }
    fn quit(mut self: Box<Self>) {
        // It has no answer, and ends the process.
        drop(self.script().call(Method::Quit, || Ok(())));
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
    fn check_devices(&mut self) -> Result<(), MachineError> {
        self.machine_mut().check_devices()
    }
    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.machine_mut().capture_state()
    }
    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.machine_mut().sync_state(state)
    }
    fn check_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.machine_mut().check_state(state)
    }
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        // Disks of a process end with it here: a new one has none to put back.
        let state = MachineState { disks: Vec::new(), ..state.clone() };
        self.machine_mut().apply_state(&state, clock)?;
        let name = self.identity.name.clone();
        if self.host.takes_corruption(&name) {
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
