use crate::{ClockPolicy, MachineError, MachineState};

/// A machine's state without its memory: vCPUs, devices, and names for the contents of disks.
///
/// The driver retains the disks' contents of each captured state as a snapshot until the state is released.
pub trait StateIo {
    /// Everything but memory at this instant. Needs the machine paused.
    fn capture_state(&mut self) -> Result<MachineState, MachineError>;

    /// Makes the snapshots that were retained for a captured state durable on the host, so that a checkpoint that needs
    /// them may be committed. Called while the guest runs, where that is possible.
    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError>;

    /// Puts vCPUs, devices and disks back. Needs the machine paused and the memory of that instant written before.
    /// Checks the state against the identity first and refuses what does not fit. When it fails after that, the machine
    /// stays paused and must be given another state before it may run.
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError>;

    /// Releases the snapshots retained for a state that will not be used any more. Those that are not there are skipped.
    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError>;
}
