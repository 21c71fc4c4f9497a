//! Devices emulated by this process: one file each, with its state.

mod power;
mod reset;
mod serial;

use retrovisor_guest::{Gpa, MachineError};

pub(super) use power::Power;
pub(super) use reset::Reset;
pub(super) use serial::Serial;

/// A device as seen by the vCPUs and by checkpoints.
///
/// A guest may write any value: a device responds or ignores it, and never panics.
pub(super) trait Device: Send {
    /// The addresses of its registers.
    fn place(&self) -> Place;

    /// A vCPU reads; `data` is all ones before.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// A vCPU writes.
    fn write(&mut self, offset: u64, data: &[u8]) -> Outcome;

    /// Takes input from outside that waits for the device, as much as it has room for. The machine runs.
    fn take_input(&mut self) {}

    /// Continues the work that [`Outcome::Behind`] left. Returns whether there is more.
    fn catch_up(&mut self) -> bool {
        false
    }

    /// The name and version of its state's format: `serial/1`. If there are several devices of a kind, each has a name
    /// of its own: `virtio-block/1:d0`.
    fn format(&self) -> &str;

    /// Its state. No request is in flight: the vCPUs are stopped.
    fn save(&self) -> Result<Vec<u8>, MachineError>;

    /// Restores a state from [`Device::save`]; refuses an invalid one without any change.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError>;
}

/// The addresses of a device's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A range of ports.
    Ports {
        /// The first one.
        first: u16,
        /// Their number.
        count: u16,
    },
    /// A range of addresses that is not memory.
    Memory {
        /// The first one.
        first: Gpa,
        /// Their number.
        bytes: u64,
    },
}

/// The effect of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The vCPU continues.
    Done,
    /// The vCPU continues once devices have completed their work, which may be after a pause ([`Device::catch_up`]).
    Behind,
    /// The machine ends, with the reason.
    End(&'static str),
}
