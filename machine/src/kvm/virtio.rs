//! Virtio devices on virtio-mmio (version 2): a guest finds them by ACPI and drives them with its stock drivers.
//!
//! A device implements `VirtioDevice`; [`Mmio`] has its registers, queues, interrupt and state. All work on queues is
//! done in the exit of the vCPU that requests it, or by a thread inside the `InputGate`: no request is in flight when
//! all vCPUs have left the guest.

mod block;
mod chain;
mod console;
mod device;
mod dirty;
mod memory;
mod mmio;
mod model;
mod net;
mod protocol_violation;
mod queues;
mod rng;
mod saved;
mod slots;

pub(super) use block::Block;
pub(super) use console::Console;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use device::VirtioDevice;
pub(super) use memory::DeviceMemory;
pub(super) use mmio::Mmio;
pub(super) use mmio::WINDOW_BYTES;
pub use model::VirtioModel;
pub(super) use net::{Net, Progress};
pub(super) use rng::Rng;
pub(super) use slots::{VirtioSlots, Window};
