use crate::{ClockPolicy, MachineError, MachineState};

/// A machine's state without its memory: vCPUs, devices, and names for the contents of disks.
///
/// The driver retains the disks' contents of each captured state as a snapshot until the state is released.
pub trait StateIo {
    /// Refuses a machine whose devices another program changed since it was started or attached to, with their names
    /// (see [`Capabilities::hot_plug`](crate::Capabilities::hot_plug)). If a state was captured since the last call, also
    /// one whose devices changed in between and are as before again.
    ///
    /// Called before a pause, so that such a machine is not paused, and again after `capture_state`: a state between two
    /// calls that succeed has the machine's own devices. Until the second one succeeds, no checkpoint with the state may
    /// be committed.
    fn check_devices(&mut self) -> Result<(), MachineError>;

    /// The state without memory, now. Needs the machine paused.
    fn capture_state(&mut self) -> Result<MachineState, MachineError>;

    /// Makes the snapshots of a captured state durable on the host; until then no checkpoint with this state may be
    /// committed. Called while the guest runs, where that is possible.
    fn sync_state(&mut self, state: &MachineState) -> Result<(), MachineError>;

    /// Refuses a state that this machine cannot be given: of another version, of other devices or disks. Changes nothing,
    /// and needs no pause. Called before memory is written for this state. Accepts every state by default:
    /// [`StateIo::apply_state`] then is the first to refuse one.
    fn check_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        Ok(())
    }

    /// Restores vCPUs, devices and disks. Needs the machine paused, and the memory of that instant written before.
    /// First checks the state against the identity and refuses an incompatible one. If it fails after that, the machine
    /// stays paused and must be given another state before it may run.
    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError>;

    /// Releases the snapshots of a state that will not be used any more. Missing ones are ignored.
    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError>;
}
