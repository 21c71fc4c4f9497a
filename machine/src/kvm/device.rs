//! Devices that this process emulates: each in a file of its own, each with its state.

mod power;
mod reset;
mod serial;

use retrovisor_guest::{Gpa, MachineError};

pub(super) use power::Power;
pub(super) use reset::Reset;
pub(super) use serial::Serial;

/// A device as the vCPUs and the checkpoints see it.
///
/// Whatever a guest writes is lawful here: a device answers or ignores, and never panics.
pub(super) trait Device: Send {
    /// Where it answers.
    fn place(&self) -> Place;

    /// A vCPU reads; `data` is all ones before.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// A vCPU writes.
    fn write(&mut self, offset: u64, data: &[u8]) -> Outcome;

    /// Takes what came from outside and waits for it, as much as it has room for. The machine runs.
    fn take_input(&mut self) {}

    /// Does a part of what the guest asked for and [`Outcome::Behind`] left. Whether there is more.
    fn catch_up(&mut self) -> bool {
        false
    }

    /// The name and version of its state's format: `serial/1`. With more of its kind, each has a name of its own:
    /// `virtio-block/1:d0`.
    fn format(&self) -> &str;

    /// Its state. Nothing is in flight: the vCPUs are stopped.
    fn save(&self) -> Result<Vec<u8>, MachineError>;

    /// Takes a state back that [`Device::save`] gave; refuses what is not one and then stays as it was.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError>;
}

/// Where a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A row of ports.
    Ports {
        /// The first one.
        first: u16,
        /// How many.
        count: u16,
    },
    /// A range of addresses that is not memory.
    Memory {
        /// The first one.
        first: Gpa,
        /// How many.
        bytes: u64,
    },
}

/// What a write leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The vCPU continues.
    Done,
    /// The vCPU continues once devices have caught up, which may be after a pause ([`Device::catch_up`]).
    Behind,
    /// The machine ends, and why.
    End(&'static str),
}
