//! The devices of microVMs under a guest with arbitrary behaviour, for the fuzzers in `fuzz/` and for the tests below:
//! bytes are decoded as accesses to registers and memory, input from outside, and restored states. None of them may
//! make a device panic or work without bound.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use retrovisor_guest::{Gpa, MemoryLayout};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes as _, GuestAddress};

use super::console::output::ConsoleOutput;
use super::console::pending::Pending;
use super::device::{Device, Power, Reset, Serial};
use super::disk::{DiskConfig, Overlay};
use super::interrupt::InterruptLine;
use super::net::link::{Link, NetBackend};
use super::virtio::{Block, Console, DeviceMemory, Mmio, Net, Rng, VirtioDevice};
use crate::ram::Ram;
use retrovisor_guest::MacAddress;

/// A device, driven by any bytes.
pub type Target = fn(&[u8]);

/// The devices, by the names of the fuzz targets.
pub const TARGETS: &[(&str, Target)] = &[
    ("device_block", block),
    ("device_console", console),
    ("device_net", net),
    ("device_ports", ports),
    ("device_rng", rng),
    ("device_serial", serial),
];

const MEMORY_BYTES: u64 = 1 << 20;
const QUEUE_SIZE: u16 = 16;
/// The first queue's rings; the next one's follow after [`RINGS_BYTES`].
const RINGS: u64 = 0x1000;
const RINGS_BYTES: u64 = 0x3000;
/// Bound on the decoded bytes.
const PROGRAM_BYTES_MAX: usize = 4096;

/// The serial port, with input from outside.
pub fn serial(bytes: &[u8]) {
    let input = Pending::default();
    let mut port = Serial::new(Silent, ConsoleOutput::default(), input.clone());
    run(&mut port, bytes, |port, typed| {
        input.push(typed);
        port.take_input();
    });
}

/// The ports for reset and power.
pub fn ports(bytes: &[u8]) {
    run(&mut Reset, bytes, |_, _| ());
    run(&mut Power, bytes, |_, _| ());
}

/// A disk.
pub fn block(bytes: &[u8]) {
    let Ok(dir) = tempdir() else { return };
    let disk =
        DiskConfig { base: None, size_bytes: Some(1 << 20), read_only: false, changes_dir: dir.clone() };
    if let Ok(overlay) = Overlay::new("d0", &disk) {
        attack(Block::new(Arc::new(Mutex::new(overlay))), bytes, |_, _| ());
    }
    let _ = std::fs::remove_dir_all(dir);
}

/// A source of random numbers.
pub fn rng(bytes: &[u8]) {
    attack(Rng, bytes, |_, _| ());
}

/// The control channel, with input from outside.
pub fn console(bytes: &[u8]) {
    let input = Pending::default();
    attack(Console::new(ConsoleOutput::default(), input.clone()), bytes, |device, typed| {
        input.push(typed);
        device.take_input();
    });
}

/// A network interface, with frames from outside.
pub fn net(bytes: &[u8]) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok((ours, theirs)) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    else {
        return;
    };
    let Ok(link) = Link::open(&NetBackend::Open(Arc::new(ours))) else { return };
    let Ok(wake) = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK) else { return };
    let device = Net::new(0, MacAddress::of_machine("fuzz", 0), Some(Arc::new(link)), Arc::new(wake));
    attack(device, bytes, |device, frame| {
        exchange(&theirs, frame);
        if let Some(up) = device.device().link_change() {
            device.reconfigure(|net| net.set_up(up));
        }
        let _ = device.work(Net::receive);
    });
}

/// Sends a frame, and reads what was sent from there.
fn exchange(other: &OwnedFd, frame: &[u8]) {
    let _ = rustix::net::send(other, frame, SendFlags::DONTWAIT);
    let mut bytes = [0; 2048];
    while rustix::net::recv(other, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT).is_ok() {}
}

/// An interrupt line without effect.
#[derive(Clone)]
struct Silent;

impl InterruptLine for Silent {
    fn set(&self, _raised: bool) {}
}

/// The remaining bytes.
struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// A number of four bytes; of fewer at the end.
    fn number(&mut self) -> u32 {
        let mut bytes = [0; 4];
        for (into, from) in bytes.iter_mut().zip(self.slice(4)) {
            *into = *from;
        }
        u32::from_le_bytes(bytes)
    }

    fn slice(&mut self, length: usize) -> &'a [u8] {
        let (slice, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        slice
    }
}

/// Accesses, input, and states, for every device.
fn run<D: Device>(device: &mut D, bytes: &[u8], mut input: impl FnMut(&mut D, &[u8])) {
    let mut program = Program(&bytes[..bytes.len().min(PROGRAM_BYTES_MAX)]);
    while let Some(what) = program.byte() {
        step(device, what % 6, &mut program, &mut input);
    }
}

fn step<D: Device>(
    device: &mut D,
    what: u8,
    program: &mut Program<'_>,
    input: &mut impl FnMut(&mut D, &[u8]),
) {
    let length = usize::from(what % 3) * 3 + 1;
    match what {
        0 | 1 => {
            let offset = u64::from(program.number() & 0xfff);
            let _ = device.write(offset, program.slice(length));
        }
        2 => device.read(u64::from(program.number() & 0xfff), &mut vec![0xff; length]),
        3 => {
            let length = program.byte().unwrap_or(0);
            input(device, program.slice(length.into()));
        }
        4 => {
            // A saved state is restored, and is unchanged then.
            let saved = device.save().expect("a device has a state");
            device.restore(&saved).expect("it is its own");
            assert_eq!(device.save().expect("a device has a state"), saved);
        }
        _ => {
            // A saved state with some bytes changed; and any bytes.
            let mut saved = device.save().expect("a device has a state");
            let (at, changed) = (program.number() as usize, program.slice(length));
            let at = at % (saved.len() + 1);
            for (into, from) in saved[at..].iter_mut().zip(changed) {
                *into = *from;
            }
            let _ = device.restore(&saved);
            let _ = device.restore(changed);
        }
    }
    while device.catch_up() {}
}

/// A virtio device beside a memory that the bytes fill, too.
fn attack<D: VirtioDevice>(device: D, bytes: &[u8], mut input: impl FnMut(&mut Mmio<D>, &[u8])) {
    let Ok(layout) = MemoryLayout::flat(MEMORY_BYTES) else { return };
    let Ok(ram) = Ram::anonymous(layout) else { return };
    let Ok(memory) = DeviceMemory::over(&ram) else { return };
    let features = device.features() | 1 << 32 | 1 << 28;
    let queues = device.queue_sizes().len();
    let Ok(mut device) = Mmio::new(device, Gpa(0), Box::new(Silent), memory) else { return };
    start(&mut device, features, queues);
    let mut offered = vec![0_u16; queues];
    let mut program = Program(&bytes[..bytes.len().min(PROGRAM_BYTES_MAX)]);
    let put = |at: u64, bytes: &[u8]| {
        let _ = ram.map().write_slice(bytes, GuestAddress(at));
    };
    while let Some(what) = program.byte() {
        let queue = usize::from(what >> 6) % queues.max(1);
        let rings = RINGS + RINGS_BYTES * queue as u64;
        match what % 16 {
            other @ 0..6 => step(&mut device, other, &mut program, &mut input),
            6 => {
                for queue in 0..queues {
                    put(RINGS + RINGS_BYTES * queue as u64 + 0x1000, &[0; 4]);
                }
                offered.fill(0);
                start(&mut device, features, queues);
            }
            7 => {
                let length = program.byte().unwrap_or(0);
                put(u64::from(program.number()) % MEMORY_BYTES, program.slice(length.into()));
            }
            8..11 => {
                // One descriptor: mostly a buffer in memory, otherwise as its bytes say.
                let at = u64::from(program.byte().unwrap_or(0) % 16);
                let mut descriptor = [0; 16];
                let buffer = u64::from(program.number()) % (MEMORY_BYTES + 0x1000);
                descriptor[..8].copy_from_slice(&buffer.to_le_bytes());
                let length = if what % 16 == 8 { program.number() } else { program.number() % 0x2000 };
                descriptor[8..12].copy_from_slice(&length.to_le_bytes());
                descriptor[12] = program.byte().unwrap_or(0) & 7;
                descriptor[14] = program.byte().unwrap_or(0) % 18;
                put(rings + at * 16, &descriptor);
            }
            11..15 => {
                let [head, count] = [program.byte(), program.byte()].map(|byte| u16::from(byte.unwrap_or(0)));
                let offered = &mut offered[queue];
                put(rings + 0x1004 + u64::from(*offered % QUEUE_SIZE) * 2, &(head % 20).to_le_bytes());
                *offered = offered.wrapping_add(if count < 240 { 1 } else { count });
                put(rings + 0x1002, &offered.to_le_bytes());
                set(&mut device, VIRTIO_MMIO_QUEUE_NOTIFY, queue as u64);
            }
            _ => {
                let register = program.byte().unwrap_or(0);
                set(&mut device, u32::from(register) * 4, program.number().into());
            }
        }
    }
    // A reset makes the device work again.
    start(&mut device, features, queues);
    assert!(device.work(|_, _| Ok(())).is_some(), "a device that was reset does not run");
}

/// Initializes a device as stock drivers do.
fn start<D: VirtioDevice>(device: &mut Mmio<D>, features: u64, queues: usize) {
    set(device, VIRTIO_MMIO_STATUS, 0);
    set(device, VIRTIO_MMIO_STATUS, 3);
    for half in 0..2_u64 {
        set(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
        set(device, VIRTIO_MMIO_DRIVER_FEATURES, features >> (32 * half) & 0xffff_ffff);
    }
    set(device, VIRTIO_MMIO_STATUS, 11);
    for queue in 0..queues as u64 {
        let rings = RINGS + RINGS_BYTES * queue;
        set(device, VIRTIO_MMIO_QUEUE_SEL, queue);
        set(device, VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
        set(device, VIRTIO_MMIO_QUEUE_DESC_LOW, rings);
        set(device, VIRTIO_MMIO_QUEUE_AVAIL_LOW, rings + 0x1000);
        set(device, VIRTIO_MMIO_QUEUE_USED_LOW, rings + 0x2000);
        set(device, VIRTIO_MMIO_QUEUE_READY, 1);
    }
    set(device, VIRTIO_MMIO_STATUS, 15);
}

fn set<D: VirtioDevice>(device: &mut Mmio<D>, register: u32, value: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "registers have 32 bits")]
    let value = value as u32;
    let _ = device.write(register.into(), &value.to_le_bytes());
    while device.catch_up() {}
}

fn tempdir() -> std::io::Result<std::path::PathBuf> {
    let mut name = [0; 8];
    rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty())?;
    let dir = std::env::temp_dir().join(format!("retrovisor-fuzz-{:016x}", u64::from_le_bytes(name)));
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

/// Initial inputs for the fuzzers: a request of two buffers in the first queue, input, and a restored state.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let request = [
        vec![9, 0],
        vec![0, 0, 8, 0, 16, 0, 0, 0, 1, 1],
        vec![9, 1],
        vec![0, 16, 8, 0, 0, 2, 0, 0, 2, 0],
        vec![11, 0, 0, 4],
        vec![3, 20],
        b"twenty bytes of input".to_vec(),
        vec![7, 4, 0, 0, 8, 0, 1, 2, 3, 4, 64 + 11, 0, 0, 6],
    ];
    let registers =
        vec![0, 1, 0, 0, 0, 0x0f, 3, 5, b'h', b'e', b'l', b'l', b'o', 2, 0, 0, 0, 0, 4, 5, 3, 0, 0, 0, 9];
    TARGETS.iter().flat_map(|(name, _)| [(*name, request.concat()), (*name, registers.clone())]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_seeds_do_no_harm() {
        for (name, bytes) in seeds() {
            TARGETS.iter().find(|(target, _)| *target == name).unwrap().1(&bytes);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn no_guest_harms_a_device(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }
    }
}
