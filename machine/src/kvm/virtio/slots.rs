use std::sync::{Arc, Mutex};

use retrovisor_guest::{Gpa, MachineError};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::device::VirtioDevice;
use super::memory::DeviceMemory;
use super::mmio::{Mmio, WINDOW_BYTES};
use crate::kvm::bus::Bus;
use crate::kvm::vm::Vm;

/// The address of the first device: in the hole below 4 GiB.
const FIRST: u64 = 0xd000_0000;
/// Interrupt lines, one for each device: first those that no device of old PCs has.
const LINES: [u32; 14] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12];

/// The place of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The first of [`WINDOW_BYTES`] addresses.
    pub(crate) first: Gpa,
    /// Its interrupt line, level-triggered.
    pub(crate) line: u32,
}

/// Assigns each virtio device of a machine its place, in the order of the calls.
pub(crate) struct VirtioSlots<'a> {
    vm: &'a Vm,
    memory: &'a DeviceMemory,
    windows: Vec<Window>,
}

impl<'a> VirtioSlots<'a> {
    pub(crate) fn new(vm: &'a Vm, memory: &'a DeviceMemory) -> Self {
        Self { vm, memory, windows: Vec::new() }
    }

    /// Adds a device to the bus; the result is for work on it from outside the guest.
    pub(crate) fn add<D: VirtioDevice + 'static>(
        &mut self,
        bus: &mut Bus,
        device: D,
    ) -> Result<Arc<Mutex<Mmio<D>>>, MachineError> {
        let number = self.windows.len();
        let line = *LINES.get(number).ok_or_else(|| MachineError::Config {
            what: format!("a machine has at most {} virtio devices", LINES.len()),
            help: "Use fewer disks or networks".into(),
        })?;
        let window = Window { first: Gpa(FIRST + WINDOW_BYTES * number as u64), line };
        if self.memory.map().address_in_range(GuestAddress(window.first.0)) {
            return Err(MachineError::Config {
                what: format!("memory is at {}, where devices answer", window.first),
                help: "Leave the last gibibyte below 4 GiB free (`kvm::memory_layout`)".into(),
            });
        }
        self.windows.push(window);
        let line = Box::new(self.vm.line(line));
        Ok(bus.add(Mmio::new(device, window.first, line, self.memory.clone())?))
    }

    /// Where the devices are found.
    pub(crate) fn windows(&self) -> &[Window] {
        &self.windows
    }
}
