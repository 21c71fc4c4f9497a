use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use retrovisor_guest::{
    Capabilities, ClockPolicy, DiskIo, Gfn, Machine, MachineError, MachineIdentity, MachineState, MemoryIo,
    MemoryView, PageContent, PageSet, RunState, StateIo,
};
use retrovisor_scripted::MemoryMachine;

use crate::store::image_hash;

/// A machine that keeps the hash of its memory when it was captured, and tells whether it is paused.
pub(super) struct WatchedMachine {
    pub(super) machine: MemoryMachine,
    pub(super) seen: Option<blake3::Hash>,
    pub(super) is_paused: Arc<AtomicBool>,
    pub(super) pauses: Arc<AtomicU32>,
    pub(super) held: i64,
}

impl Machine for WatchedMachine {
    fn identity(&self) -> &MachineIdentity {
        self.machine.identity()
    }

    fn capabilities(&self) -> Capabilities {
        self.machine.capabilities()
    }

    fn run_state(&mut self) -> RunState {
        self.machine.run_state()
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.is_paused.store(true, Ordering::SeqCst);
        self.pauses.fetch_add(1, Ordering::SeqCst);
        self.machine.pause()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.is_paused.store(false, Ordering::SeqCst);
        self.machine.resume()
    }
}

impl MemoryIo for WatchedMachine {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.machine.take_dirty(into)
    }

    fn memory(&self) -> &dyn MemoryView {
        self.machine.memory()
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        self.machine.write_page(gfn, content)
    }
}

impl StateIo for WatchedMachine {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        self.machine.check_devices()
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.seen = Some(image_hash(self.machine.memory()).unwrap());
        self.held += 1;
        self.machine.capture_state()
    }

    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.machine.sync_state(state)
    }

    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        self.machine.apply_state(state, clock)
    }

    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.held -= 1;
        self.machine.release_state(state)
    }
}

impl DiskIo for WatchedMachine {
    fn retains_disks(&mut self, state: &MachineState) -> Result<bool, MachineError> {
        self.machine.retains_disks(state)
    }
}
