use std::path::PathBuf;
use std::sync::Arc;

use retrovisor_guest::{
    BlockContent, Capabilities, ClockPolicy, ControlPort, DirtyFinder, DiskBlocks, DiskChanges, DiskIo,
    DiskShape, DiskState, Gfn, GuestEvent, Machine, MachineError, MachineIdentity, MachineState, MemoryIo,
    MemoryView, PageContent, PageSet, ProcessIdentity, RunState, StateIo, Vm,
};

use crate::driver_calls::{Call, DriverCalls};

/// A machine whose calls are marked while they are under way, so that one that does not return is noticed.
pub(crate) struct WatchedVm {
    vm: Box<dyn Vm>,
    calls: Arc<DriverCalls>,
}

impl WatchedVm {
    pub(crate) fn new(vm: Box<dyn Vm>, calls: Arc<DriverCalls>) -> Self {
        Self { vm, calls }
    }
}

impl Vm for WatchedVm {
    fn process(&self) -> ProcessIdentity {
        self.vm.process()
    }
    fn console(&self) -> Option<PathBuf> {
        self.vm.console()
    }
    fn console_log(&self) -> Option<PathBuf> {
        self.vm.console_log()
    }
    fn control_port(&self) -> Option<ControlPort> {
        self.vm.control_port()
    }
    fn links(&self) -> Vec<bool> {
        let _call = self.calls.begin(Call::Links);
        self.vm.links()
    }
    fn dirty_finder(&self) -> DirtyFinder {
        self.vm.dirty_finder()
    }
    fn confinement(&self) -> String {
        self.vm.confinement()
    }
    fn renew_identity(&mut self) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::RenewIdentity);
        self.vm.renew_identity()
    }
    fn make_independent(&mut self) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::MakeIndependent);
        self.vm.make_independent()
    }
    fn detach(self: Box<Self>, deletes_snapshots: bool) -> Result<(), MachineError> {
        let Self { vm, calls } = *self;
        let _call = calls.begin(Call::Detach);
        vm.detach(deletes_snapshots)
    }
    fn quit(self: Box<Self>) {
        let Self { vm, calls } = *self;
        let _call = calls.begin(Call::Quit);
        vm.quit();
    }
}

impl Machine for WatchedVm {
    fn identity(&self) -> &MachineIdentity {
        self.vm.identity()
    }
    fn capabilities(&self) -> Capabilities {
        self.vm.capabilities()
    }
    fn run_state(&mut self) -> RunState {
        let _call = self.calls.begin(Call::RunState);
        self.vm.run_state()
    }
    fn pause(&mut self) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::Pause);
        self.vm.pause()
    }
    fn resume(&mut self) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::Resume);
        self.vm.resume()
    }
    fn events(&mut self) -> Vec<GuestEvent> {
        let _call = self.calls.begin(Call::Events);
        self.vm.events()
    }
}

impl MemoryIo for WatchedVm {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::TakeDirty);
        self.vm.take_dirty(into)
    }
    fn memory(&self) -> &dyn MemoryView {
        self.vm.memory()
    }
    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::WritePage);
        self.vm.write_page(gfn, content)
    }
    fn write_lines(&mut self, gfn: Gfn, content: PageContent<'_>, lines: u64) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::WriteLines);
        self.vm.write_lines(gfn, content, lines)
    }
}

impl StateIo for WatchedVm {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::CheckDevices);
        self.vm.check_devices()
    }
    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        let _call = self.calls.begin(Call::CaptureState);
        self.vm.capture_state()
    }
    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::SyncState);
        self.vm.sync_state(state)
    }
    fn check_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::CheckState);
        self.vm.check_state(state)
    }
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::ApplyState);
        self.vm.apply_state(state, clock)
    }
    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::ReleaseState);
        self.vm.release_state(state)
    }
}

impl DiskIo for WatchedVm {
    fn disks(&self) -> &[DiskShape] {
        self.vm.disks()
    }
    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let _call = self.calls.begin(Call::DiskChanges);
        self.vm.disk_changes(at, since)
    }
    fn disk_blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        let _call = self.calls.begin(Call::DiskBlocks);
        self.vm.disk_blocks(at)
    }
    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        let _call = self.calls.begin(Call::RetainedDisks);
        self.vm.retained_disks()
    }
    fn retains_disks(&mut self, state: &MachineState) -> Result<bool, MachineError> {
        let _call = self.calls.begin(Call::RetainedDisks);
        self.vm.retains_disks(state)
    }
    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        let _call = self.calls.begin(Call::WriteBlocks);
        self.vm.write_blocks(disk, first, contents)
    }
}
