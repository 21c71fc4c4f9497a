use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use retrovisor_guest::{Gpa, MachineError, MemoryLayout, MemoryView as _, PageSet};
use vm_memory::{Bytes as _, GuestAddress};

use super::block::Block;
use super::device::VirtioDevice;
use super::memory::DeviceMemory;
use super::mmio::Mmio;
use super::rng::Rng;
use crate::kvm::device::{Device, Outcome};
use crate::kvm::disk::{DiskConfig, Overlay};
use crate::kvm::interrupt::InterruptLine;
use crate::ram::Ram;

/// A virtio device with memory of its own, without KVM or vCPUs: its owner acts as the driver.
///
/// For tests of devices and for fuzzing them. Offsets are those of virtio-mmio's registers.
pub struct VirtioModel {
    device: Box<dyn Device>,
    line: ModelLine,
    ram: Ram,
    memory: DeviceMemory,
}

#[derive(Clone, Default)]
struct ModelLine(Arc<AtomicBool>);

impl InterruptLine for ModelLine {
    fn set(&self, raised: bool) {
        self.0.store(raised, Ordering::SeqCst);
    }
}

impl VirtioModel {
    /// A disk, with this much memory from address 0 on.
    pub fn block(memory_bytes: u64, disk: &DiskConfig) -> Result<Self, MachineError> {
        let overlay = Overlay::new("d0", disk)?;
        Self::over(memory_bytes, Block::new(Arc::new(Mutex::new(overlay))))
    }

    /// A source of random numbers, with this much memory from address 0 on.
    pub fn rng(memory_bytes: u64) -> Result<Self, MachineError> {
        Self::over(memory_bytes, Rng)
    }

    fn over<D: VirtioDevice + 'static>(memory_bytes: u64, device: D) -> Result<Self, MachineError> {
        let layout = MemoryLayout::flat(memory_bytes)?;
        let ram = Ram::anonymous(layout)?;
        let memory = DeviceMemory::over(&ram)?;
        let line = ModelLine::default();
        let device = Mmio::new(device, Gpa(0), Box::new(line.clone()), memory.clone())?;
        Ok(Self { device: Box::new(device), line, ram, memory })
    }

    /// The driver reads registers; as many bytes as `data` has.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.device.read(offset, data);
    }

    /// The driver writes registers; the device does all resulting work.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if self.device.write(offset, data) == Outcome::Behind {
            while self.device.catch_up() {}
        }
    }

    /// Like [`VirtioModel::write`], but the device stops where a pause would stop it; returns whether it has more to
    /// do.
    pub fn write_and_pause(&mut self, offset: u64, data: &[u8]) -> bool {
        self.device.write(offset, data) == Outcome::Behind
    }

    /// Reads memory; `false` where there is none.
    #[must_use]
    pub fn read_memory(&self, at: Gpa, into: &mut [u8]) -> bool {
        self.ram.map().read_slice(into, GuestAddress(at.0)).is_ok()
    }

    /// The driver writes memory; `false` where there is none. This does not count as a write of the device.
    #[must_use]
    pub fn write_memory(&self, at: Gpa, bytes: &[u8]) -> bool {
        self.ram.write(at, bytes).is_ok()
    }

    /// Whether the interrupt line is raised.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.line.0.load(Ordering::SeqCst)
    }

    /// The frames that the device has written since the last call.
    #[must_use]
    pub fn take_dirty(&self) -> PageSet {
        let mut dirty = PageSet::empty(self.ram.layout());
        self.memory.take_dirty(&mut dirty);
        dirty
    }

    /// The device's state.
    pub fn save(&self) -> Result<Vec<u8>, MachineError> {
        self.device.save()
    }

    /// Restores a state from [`VirtioModel::save`].
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.device.restore(bytes)
    }
}
