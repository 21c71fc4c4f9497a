use crate::{Capabilities, DiskIo, GuestEvent, MachineError, MachineIdentity, MemoryIo, RunState, StateIo};

/// A virtual machine that is managed. A driver implements it; the recorder uses it.
///
/// Order of a checkpoint: `pause` → `take_dirty` → copy pages through `memory` → `capture_state` → `resume` →
/// `sync_state`.
/// Order of a rollback: `pause` → `write_page` for every page that differs → `apply_state` → `resume`.
/// A method that fails leaves the machine unchanged, unless its comment says otherwise.
pub trait Machine: MemoryIo + StateIo + DiskIo + Send {
    /// Name, driver, version, layout: constant while the machine lives.
    fn identity(&self) -> &MachineIdentity;

    /// What this machine can do beyond what every machine can: constant while the machine lives.
    fn capabilities(&self) -> Capabilities;

    /// Whether the guest runs, as far as the driver knows now.
    fn run_state(&mut self) -> RunState;

    /// Stops all vCPUs and finishes or parks device work. Does nothing when already paused.
    fn pause(&mut self) -> Result<(), MachineError>;

    /// Sets the guest running. Does nothing when already running.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// What happened to the guest since the last call, oldest first. A driver keeps a limited number. Empty by default.
    fn events(&mut self) -> Vec<GuestEvent> {
        Vec::new()
    }
}
