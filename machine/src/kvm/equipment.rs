use retrovisor_guest::MachineError;

use super::bus::Bus;
use super::config::KvmConfig;
use super::console::output::ConsoleOutput;
use super::console::pending::Pending;
use super::device::{Power, Reset, Serial};
use super::disk::DiskSet;
use super::net::receiver::Interface;
use super::virtio::{Block, Console, DeviceMemory, Rng, VirtioSlots, Window};
use super::vm::Vm;
use crate::ram::Ram;
use retrovisor_guest::MacAddress;

const SERIAL_LINE: u32 = 4;

/// All devices of a machine, on their bus, and the handles that the machine keeps.
pub(super) struct Equipment {
    pub(super) bus: Bus,
    /// The guest's memory for writes of devices.
    pub(super) memory: DeviceMemory,
    /// The windows of virtio devices, for the tables that the guest reads.
    pub(super) windows: Vec<Window>,
    pub(super) disks: DiskSet,
    pub(super) console: Ends,
    pub(super) channel: Option<Ends>,
    pub(super) interfaces: Vec<Interface>,
}

/// The host's side of a console.
#[derive(Clone, Default)]
pub(super) struct Ends {
    pub(super) output: ConsoleOutput,
    pub(super) input: Pending,
}

impl Equipment {
    /// Makes the devices. Their order is that of their states in a checkpoint, and of their windows.
    pub(super) fn new(config: &KvmConfig, vm: &Vm, ram: &Ram) -> Result<Self, MachineError> {
        let console = Ends::default();
        let channel = config.channel.then(Ends::default);
        let memory = DeviceMemory::over(ram)?;
        let mut bus = Bus::default();
        bus.add(Serial::new(vm.line(SERIAL_LINE), console.output.clone(), console.input.clone()));
        bus.add(Reset);
        bus.add(Power);
        let mut virtio = VirtioSlots::new(vm, &memory);
        virtio.add(&mut bus, Rng)?;
        let (disks, overlays) = DiskSet::open(&config.disks)?;
        for overlay in overlays {
            virtio.add(&mut bus, Block::new(overlay))?;
        }
        if let Some(ends) = channel.clone() {
            virtio.add(&mut bus, Console::new(ends.output, ends.input))?;
        }
        let mut interfaces = Vec::new();
        for (index, net) in config.nets.iter().enumerate() {
            let mac = net.mac.unwrap_or_else(|| MacAddress::of_machine(&config.name, index));
            let interface = Interface::plug(&net.backend, index, mac, |device| virtio.add(&mut bus, device))?;
            interfaces.push(interface);
        }
        let windows = virtio.windows().to_vec();
        Ok(Self { bus, memory, windows, disks, console, channel, interfaces })
    }
}
