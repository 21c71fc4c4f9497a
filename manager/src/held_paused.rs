use retrovisor_guest::{
    BlockContent, Capabilities, ClockPolicy, DiskBlocks, DiskChanges, DiskIo, DiskShape, DiskState, Gfn,
    GuestEvent, Machine, MachineError, MachineIdentity, MachineState, MemoryIo, MemoryView, PageContent,
    PageSet, RunState, StateIo,
};

/// A machine whose `resume` does nothing: its memory can be read between a rollback and the guest's first instruction
/// after it.
pub(crate) struct HeldPaused<'a>(pub(crate) &'a mut dyn Machine);

impl Machine for HeldPaused<'_> {
    fn identity(&self) -> &MachineIdentity {
        self.0.identity()
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn run_state(&mut self) -> RunState {
        self.0.run_state()
    }
    fn pause(&mut self) -> Result<(), MachineError> {
        self.0.pause()
    }
    fn resume(&mut self) -> Result<(), MachineError> {
        Ok(())
    }
    fn events(&mut self) -> Vec<GuestEvent> {
        self.0.events()
    }
}

impl MemoryIo for HeldPaused<'_> {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.0.take_dirty(into)
    }
    fn memory(&self) -> &dyn MemoryView {
        self.0.memory()
    }
    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        self.0.write_page(gfn, content)
    }
    fn write_lines(&mut self, gfn: Gfn, content: PageContent<'_>, lines: u64) -> Result<(), MachineError> {
        self.0.write_lines(gfn, content, lines)
    }
}

impl StateIo for HeldPaused<'_> {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        self.0.check_devices()
    }
    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.0.capture_state()
    }
    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.0.sync_state(state)
    }
    fn check_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.0.check_state(state)
    }
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        self.0.apply_state(state, clock)
    }
    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.0.release_state(state)
    }
}

impl DiskIo for HeldPaused<'_> {
    fn disks(&self) -> &[DiskShape] {
        self.0.disks()
    }
    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        self.0.disk_changes(at, since)
    }
    fn disk_blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        self.0.disk_blocks(at)
    }
    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        self.0.retained_disks()
    }
    fn retains_disks(&mut self, state: &MachineState) -> Result<bool, MachineError> {
        self.0.retains_disks(state)
    }
    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        self.0.write_blocks(disk, first, contents)
    }
}
