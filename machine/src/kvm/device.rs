//! Devices that this process emulates: each in a file of its own, each with its state.

mod power;
mod reset;
mod serial;

use retrovisor_guest::MachineError;

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

    /// The name and version of its state's format: `serial/1`.
    fn format(&self) -> &'static str;

    /// Its state. Nothing is in flight: the vCPUs stand still.
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
}

/// What a write leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The vCPU goes on.
    Done,
    /// The machine ends, and why.
    End(&'static str),
}
