use retrovisor_guest::{Gpa, MachineError};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::{Queue, QueueT};

use super::device::VirtioDevice;
use super::memory::DeviceMemory;
use super::protocol_violation::ProtocolViolation;
use super::queues::Queues;
use super::saved::{Registers, Saved};
use crate::kvm::device::{Device, Outcome, Place};
use crate::kvm::interrupt::InterruptLine;
use crate::kvm::state::{decode, encode};

/// Size of a device's register window.
pub(crate) const WINDOW_BYTES: u64 = 0x1000;
/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "RTVR".
const VENDOR: u32 = 0x5256_5452;
const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The registers through which a driver reaches a virtio device (virtio-mmio, version 2), its queues and its interrupt.
///
/// A device has at most 64 queues.
pub(crate) struct Mmio<D> {
    device: D,
    first: Gpa,
    line: Box<dyn InterruptLine>,
    /// The level of the line, which KVM does not report.
    raised: bool,
    memory: DeviceMemory,
    queues: Vec<Queue>,
    registers: Registers,
}

impl<D: VirtioDevice> Mmio<D> {
    /// A device whose registers begin at `first`.
    pub(crate) fn new(
        device: D,
        first: Gpa,
        line: Box<dyn InterruptLine>,
        memory: DeviceMemory,
    ) -> Result<Self, MachineError> {
        let queues = device.queue_sizes().iter().map(|size| Queue::new(*size)).collect::<Result<_, _>>();
        let queues = queues.map_err(|error| MachineError::Driver {
            doing: format!("making the queues of {}", device.format()),
            message: error.to_string(),
        })?;
        Ok(Self { device, first, line, raised: false, memory, queues, registers: Registers::default() })
    }

    /// Does work on the device that no driver requested: input arrived. `None` without a driver that is ready.
    pub(crate) fn work<R>(
        &mut self,
        work: impl FnOnce(&mut D, &mut Queues<'_>) -> Result<R, ProtocolViolation>,
    ) -> Option<R> {
        if !self.is_running() {
            return None;
        }
        let mut queues = Queues::new(&self.memory, &mut self.queues);
        let done = work(&mut self.device, &mut queues);
        let interrupt = queues.wants_interrupt();
        if interrupt {
            self.interrupt(VIRTIO_MMIO_INT_VRING);
        }
        done.map_err(|violation| self.fail(violation)).ok()
    }

    /// Changes the device's configuration, and notifies the driver.
    pub(crate) fn reconfigure(&mut self, change: impl FnOnce(&mut D)) {
        change(&mut self.device);
        self.registers.config_generation = self.registers.config_generation.wrapping_add(1);
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// The device without its transport.
    pub(crate) fn device(&mut self) -> &mut D {
        &mut self.device
    }

    fn has(&self, status: u32) -> bool {
        self.registers.status & status != 0
    }

    fn is_running(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK) && !self.has(VIRTIO_CONFIG_S_NEEDS_RESET)
    }

    fn interrupt(&mut self, why: u32) {
        self.registers.interrupt_status |= why;
        self.set_line();
    }

    /// The line is raised while there is an event that the driver has not acknowledged.
    fn set_line(&mut self) {
        let raised = self.registers.interrupt_status != 0;
        if raised != self.raised {
            self.raised = raised;
            self.line.set(raised);
        }
    }

    fn fail(&mut self, ProtocolViolation(why): ProtocolViolation) {
        tracing::debug!(device = self.device.format(), why, "a driver did what is forbidden");
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.registers.behind = 0;
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Queue::reset);
        let config_generation = self.registers.config_generation;
        self.registers = Registers { config_generation, ..Registers::default() };
        self.set_line();
    }

    fn features(&self) -> u64 {
        OFFERED | self.device.features()
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(self.registers.queue_sel as usize)
    }

    fn register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.kind(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.registers.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.queue().is_some_and(QueueT::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.registers.interrupt_status,
            VIRTIO_MMIO_STATUS => self.registers.status,
            VIRTIO_MMIO_CONFIG_GENERATION => self.registers.config_generation,
            // There is no shared memory.
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) -> Outcome {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => {
                let (sel, features) =
                    (self.registers.driver_features_sel, &mut self.registers.driver_features);
                if self.registers.status & VIRTIO_CONFIG_S_DRIVER != 0
                    && self.registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0
                    && sel < 2
                {
                    let shift = sel * 32;
                    *features = *features & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_READY
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH => self.set_up_queue(offset, value),
            VIRTIO_MMIO_QUEUE_NOTIFY if self.is_running() && (value as usize) < self.queues.len() => {
                self.registers.behind |= 1 << value;
                if self.catch_up() {
                    return Outcome::Behind;
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.registers.interrupt_status &= !value;
                self.set_line();
            }
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => {}
        }
        Outcome::Done
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut status = value | self.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET;
        let chosen = self.registers.driver_features;
        let lawful = chosen & !self.features() == 0 && chosen & 1 << VIRTIO_F_VERSION_1 != 0;
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !lawful {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.registers.status = status;
    }

    /// A queue in use cannot be changed.
    fn set_up_queue(&mut self, offset: u32, value: u32) {
        let ready_to = self.has(VIRTIO_CONFIG_S_FEATURES_OK);
        let memory = self.memory.map();
        let Some(queue) = self.queues.get_mut(self.registers.queue_sel as usize) else { return };
        if offset == VIRTIO_MMIO_QUEUE_READY {
            queue.set_ready(value == 1 && ready_to);
            // Checked once: neither the queue's place nor the memory changes while it is ready.
            if queue.ready() && (queue.avail_ring() == 0 || !queue.is_valid(memory)) {
                queue.set_ready(false);
            }
            return;
        }
        if queue.ready() {
            return;
        }
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

impl<D: VirtioDevice> Device for Mmio<D> {
    fn place(&self) -> Place {
        Place::Memory { first: self.first, bytes: WINDOW_BYTES }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            self.device.read_config(at, data);
        } else if let (Ok(offset), Ok(data)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        if let Some(at) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            self.device.write_config(at, data);
            return Outcome::Done;
        }
        match (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            (Ok(offset), Ok(data)) => self.set_register(offset, u32::from_le_bytes(data)),
            _ => Outcome::Done,
        }
    }

    fn take_input(&mut self) {
        let mut more = true;
        while more {
            let done = self.work(|device, queues| {
                device.take_input(queues)?;
                Ok(queues.is_behind())
            });
            more = done == Some(true);
        }
    }

    fn catch_up(&mut self) -> bool {
        while self.registers.behind != 0 && self.is_running() {
            let queue = self.registers.behind.trailing_zeros();
            let behind = self.work(|device, queues| {
                device.notify(queue as usize, queues)?;
                Ok(queues.is_behind())
            });
            match behind {
                Some(true) => return true,
                _ => self.registers.behind &= !(1 << queue),
            }
        }
        false
    }

    fn format(&self) -> &str {
        self.device.format()
    }

    fn save(&self) -> Result<Vec<u8>, MachineError> {
        let saved = Saved {
            registers: self.registers.clone(),
            queues: self.queues.iter().map(Into::into).collect(),
            device: self.device.save()?,
        };
        encode(self.format(), &saved)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        let saved: Saved = decode(self.format(), bytes)?;
        let refused = |message: &str| MachineError::Driver {
            doing: format!("reading the saved state of {}", self.device.format()),
            message: message.into(),
        };
        if saved.queues.len() != self.queues.len() {
            return Err(refused("it has another number of queues"));
        }
        let queues = self.queues.iter().zip(&saved.queues);
        let queues = queues.map(|(queue, saved)| saved.queue(queue.max_size())).collect::<Option<Vec<_>>>();
        let queues = queues.ok_or_else(|| refused("a queue cannot be"))?;
        if queues.iter().any(|queue| queue.ready() && !queue.is_valid(self.memory.map())) {
            return Err(refused("a queue is not in memory"));
        }
        // Before they are negotiated, a driver may have written anything there.
        let agreed = saved.registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if agreed && saved.registers.driver_features & !self.features() != 0 {
            return Err(refused("its driver uses a feature that this device does not have"));
        }
        if saved.registers.behind.checked_shr(u32::try_from(queues.len()).unwrap_or(64)).unwrap_or(0) != 0 {
            return Err(refused("it is behind with a queue that there is not"));
        }
        self.device.restore(&saved.device)?;
        (self.queues, self.registers) = (queues, saved.registers);
        self.set_line();
        Ok(())
    }
}

/// The lower or the upper half.
fn half(value: u64, sel: u32) -> u32 {
    match sel {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}
