//! The driver's side of virtio-mmio, as simple as possible.

use std::path::Path;

use retrovisor_guest::Gpa;
use retrovisor_machine::kvm::{DiskConfig, VirtioModel};

pub(crate) const MEMORY_BYTES: u64 = 4 << 20;
pub(crate) const QUEUE_SIZE: u16 = 64;
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// From here on the driver has its buffers.
pub(crate) const BUFFERS: u64 = 0x10000;

pub(crate) const DEVICE_FEATURES: u64 = 0x10;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x34;
pub(crate) const QUEUE_NUM: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
pub(crate) const NOTIFY: u64 = 0x50;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
pub(crate) const INTERRUPT_ACK: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const QUEUE_DESC: u64 = 0x80;
pub(crate) const QUEUE_AVAIL: u64 = 0x90;
pub(crate) const QUEUE_USED: u64 = 0xa0;
pub(crate) const CONFIG: u64 = 0x100;

pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A driver with one queue.
pub(crate) struct Driver {
    pub(crate) model: VirtioModel,
    offered: u16,
    seen: u16,
    next_descriptor: u16,
}

/// A buffer of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) at: u64,
    pub(crate) bytes: u32,
    pub(crate) write: bool,
}

pub(crate) fn disk(dir: &Path, size_bytes: u64) -> DiskConfig {
    DiskConfig { base: None, size_bytes: Some(size_bytes), read_only: false, changes_dir: dir.to_owned() }
}

impl Driver {
    /// Initializes the device as a stock driver does.
    pub(crate) fn start(model: VirtioModel) -> Self {
        let mut driver = Self { model, offered: 0, seen: 0, next_descriptor: 0 };
        driver.set(STATUS, 0);
        driver.set(STATUS, ACKNOWLEDGE | DRIVER);
        for sel in 0..2 {
            driver.set(DEVICE_FEATURES_SEL, sel);
            let features = driver.get(DEVICE_FEATURES);
            driver.set(DRIVER_FEATURES_SEL, sel);
            driver.set(DRIVER_FEATURES, features);
        }
        driver.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(driver.get(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        driver.set_up_queue();
        driver.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        driver
    }

    pub(crate) fn set_up_queue(&mut self) {
        self.set(QUEUE_SEL, 0);
        assert!(self.get(QUEUE_NUM_MAX) >= QUEUE_SIZE.into());
        self.set(QUEUE_NUM, QUEUE_SIZE.into());
        for (register, at) in [(QUEUE_DESC, DESCRIPTORS), (QUEUE_AVAIL, AVAILABLE), (QUEUE_USED, USED)] {
            self.set(register, u32::try_from(at).unwrap());
            self.set(register + 4, 0);
        }
        self.set(QUEUE_READY, 1);
        assert_eq!(self.get(QUEUE_READY), 1);
    }

    /// The same driver, after its device was replaced.
    pub(crate) fn with_model(self, model: VirtioModel) -> Self {
        Self { model, ..self }
    }

    pub(crate) fn get(&mut self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.model.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn set(&mut self, register: u64, value: u32) {
        self.model.write(register, &value.to_le_bytes());
    }

    pub(crate) fn memory(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        assert!(self.model.read_memory(Gpa(at), &mut into));
        into
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        assert!(self.model.write_memory(Gpa(at), bytes));
    }

    /// Makes a request available, without a notification.
    pub(crate) fn offer(&mut self, buffers: &[Buffer]) {
        let head = self.next_descriptor;
        for (number, buffer) in buffers.iter().enumerate() {
            let at = self.next_descriptor;
            self.next_descriptor = (at + 1) % QUEUE_SIZE;
            let more = number + 1 < buffers.len();
            let flags = if more { NEXT } else { 0 } | if buffer.write { WRITE } else { 0 };
            let mut descriptor = buffer.at.to_le_bytes().to_vec();
            descriptor.extend(buffer.bytes.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend(self.next_descriptor.to_le_bytes());
            self.put(DESCRIPTORS + u64::from(at) * 16, &descriptor);
        }
        self.put(AVAILABLE + 4 + u64::from(self.offered % QUEUE_SIZE) * 2, &head.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
        self.put(AVAILABLE + 2, &self.offered.to_le_bytes());
    }

    /// The completions that were not read yet: how many bytes were written for each.
    pub(crate) fn answers(&mut self) -> Vec<u32> {
        let end = u16::from_le_bytes(self.memory(USED + 2, 2).try_into().unwrap());
        let mut answers = Vec::new();
        while self.seen != end {
            let element = self.memory(USED + 4 + u64::from(self.seen % QUEUE_SIZE) * 8, 8);
            answers.push(u32::from_le_bytes(element[4..].try_into().unwrap()));
            self.seen = self.seen.wrapping_add(1);
        }
        answers
    }

    /// Acknowledges interrupts; returns whether there was one.
    pub(crate) fn acknowledge(&mut self) -> bool {
        let status = self.get(INTERRUPT_STATUS);
        assert_eq!(self.model.interrupt(), status != 0);
        self.set(INTERRUPT_ACK, status);
        assert!(!self.model.interrupt());
        status != 0
    }

    /// One request to a disk: the number of bytes written for it, and the status.
    pub(crate) fn block(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u32, u8) {
        self.offer_block(BUFFERS, kind, sector, data);
        self.set(NOTIFY, 0);
        assert!(self.acknowledge());
        let answers = self.answers();
        assert_eq!(answers.len(), 1);
        (answers[0], self.memory(BUFFERS + 16, 1)[0])
    }

    /// Makes a disk's request available; its header is at `at`, its status after it.
    pub(crate) fn offer_block(&mut self, at: u64, kind: u32, sector: u64, data: &[Buffer]) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        // No status yet.
        header.push(0xff);
        self.put(at, &header);
        let mut buffers = vec![Buffer { at, bytes: 16, write: false }];
        buffers.extend(data);
        buffers.push(Buffer { at: at + 16, bytes: 1, write: true });
        self.offer(&buffers);
    }
}
