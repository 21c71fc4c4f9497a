use retrovisor_guest::{
    ClockPolicy, Machine as _, MachineState, MemoryIo as _, PAGE_SIZE, Page, PageContent, PageSet,
    StateIo as _,
};
use retrovisor_machine::kvm::KvmMachine;

/// The complete state of a small machine at one instant.
pub(crate) struct Past {
    pub(crate) state: MachineState,
    pages: Vec<Page>,
}

impl Past {
    /// The machine is paused.
    pub(crate) fn of(machine: &mut KvmMachine) -> Self {
        let layout = machine.identity().layout.clone();
        machine.take_dirty(&mut PageSet::empty(&layout)).unwrap();
        let state = machine.capture_state().unwrap();
        let read = |gfn| {
            let mut page = [0; PAGE_SIZE];
            machine.memory().read_page(gfn, &mut page).unwrap();
            page
        };
        Self { pages: layout.gfns().map(read).collect(), state }
    }

    /// The contents of all frames, in order.
    pub(crate) fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// Restores the parts that differ; the machine is paused. Returns the frames that were written.
    pub(crate) fn put_back(&self, machine: &mut KvmMachine, clock: ClockPolicy) -> PageSet {
        let layout = machine.identity().layout.clone();
        let mut dirty = PageSet::empty(&layout);
        machine.take_dirty(&mut dirty).unwrap();
        for index in dirty.indices() {
            let page = &self.pages[usize::try_from(index).unwrap()];
            machine.write_page(layout.gfn(index).unwrap(), PageContent::Data(page)).unwrap();
        }
        machine.apply_state(&self.state, clock).unwrap();
        dirty
    }
}
