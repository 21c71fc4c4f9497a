use crate::{Capabilities, DiskIo, GuestEvent, MachineError, MachineIdentity, MemoryIo, RunState, StateIo};

/// A managed virtual machine. A driver implements it; the recorder uses it.
///
/// Order of a checkpoint: `check_devices` → `pause` → `take_dirty` → copy pages through `memory` → `capture_state` →
/// `resume` → `check_devices` → `sync_state`.
/// Order of a rollback: `check_devices` → `pause` → `write_page` for every page that differs → `apply_state` → `resume`.
/// A method that fails leaves the machine unchanged, unless its comment says otherwise.
pub trait Machine: MemoryIo + StateIo + DiskIo + Send {
    /// Name, driver, version, layout: constant for the lifetime of the machine.
    fn identity(&self) -> &MachineIdentity;

    /// What this machine can do beyond what every machine can: constant for the lifetime of the machine.
    fn capabilities(&self) -> Capabilities;

    /// Whether the guest runs, as far as the driver knows.
    fn run_state(&mut self) -> RunState;

    /// Stops all vCPUs and finishes or parks device work. Does nothing when already paused.
    fn pause(&mut self) -> Result<(), MachineError>;

    /// Makes the guest run. Does nothing when it already runs.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// The events since the last call, oldest first. A driver keeps a limited number. Empty by default.
    fn events(&mut self) -> Vec<GuestEvent> {
        Vec::new()
    }
}
