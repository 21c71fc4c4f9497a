pub(super) mod launch;

use std::sync::Arc;

use retrovisor_guest::{
    BlockContent, Capabilities, ClockPolicy, DiskBlocks, DiskChanges, DiskIo, DiskShape, DiskState, Gfn,
    Machine, MachineError, MachineIdentity, MachineState, MemoryIo, MemoryView, PageContent, PageSet,
    RunState, StateIo, StateSection,
};

use super::boot::GENERATION_ID;
use super::bus::Bus;
use super::console::ConsoleInput;
use super::console::output::ConsoleOutput;
use super::disk::DiskSet;
use super::equipment::Ends;
use super::gate::Gate;
use super::input_gate::InputGate;
use super::interrupt::{InterruptLine as _, VmLine};
use super::net::link::{Link, NetBackend};
use super::net::receiver::Receiver;
use super::net::status::NetStatus;
use super::state::{decode, encode};
use super::vcpu::{Shape, Vcpu, VcpuState};
use super::virtio::DeviceMemory;
use super::vm::{Vm, VmState};
use crate::ram::Ram;

pub(super) const VM_FORMAT: &str = "kvm-vm/1";
pub(super) const VCPU_FORMAT: &str = "kvm-vcpu/1";
const DEVICE_FORMAT: &str = "kvm-device/";

/// A microVM in this process.
pub struct KvmMachine {
    identity: MachineIdentity,
    // Dropped in this order: vCPUs before the VM, the VM before its memory.
    vcpus: Vec<Vcpu>,
    /// One for each network interface.
    receivers: Vec<Receiver>,
    gate: Arc<Gate>,
    bus: Arc<Bus>,
    vm: Vm,
    ram: Ram,
    /// The same memory for writes of devices.
    device_memory: DeviceMemory,
    disks: DiskSet,
    shape: Arc<Shape>,
    input_gate: InputGate,
    console: Ends,
    channel: Option<Ends>,
    generation_line: VmLine,
    /// The next `take_dirty` returns every frame.
    reports_all: bool,
    /// The memory is of another instant, whose state was not applied yet.
    needs_state: bool,
}

impl KvmMachine {
    /// The guest's output on its serial port, the newest mebibyte.
    #[must_use]
    pub fn console(&self) -> Vec<u8> {
        self.console.output.bytes()
    }

    /// The guest's output on its serial port, to be followed from any thread.
    #[must_use]
    pub fn console_output(&self) -> ConsoleOutput {
        self.console.output.clone()
    }

    /// Input for the guest's serial port, from any thread.
    #[must_use]
    pub fn console_input(&self) -> ConsoleInput {
        ConsoleInput::new(self.console.input.clone(), self.input_gate.clone())
    }

    /// The two ends of the control channel, if the machine has one: input for the guest's second console, and its
    /// output.
    #[must_use]
    pub fn channel(&self) -> Option<(ConsoleInput, ConsoleOutput)> {
        let ends = self.channel.clone()?;
        Some((ConsoleInput::new(ends.input, self.input_gate.clone()), ends.output))
    }

    /// The identifier by which a guest detects that it shares its past with another guest.
    pub fn generation_id(&self) -> Result<[u8; 16], MachineError> {
        let mut id = [0; 16];
        self.ram.read(GENERATION_ID, &mut id)?;
        Ok(id)
    }

    /// Sets another identifier and notifies the guest: a Linux guest with the driver (`CONFIG_VMGENID`) then reseeds
    /// its random numbers. Needs a paused machine, and must follow [`StateIo::apply_state`], which restores the old
    /// one.
    pub fn set_generation_id(&mut self, id: [u8; 16]) -> Result<(), MachineError> {
        self.needs_pause("changing the generation identifier")?;
        self.device_memory.write(GENERATION_ID, &id)?;
        self.generation_line.pulse();
        Ok(())
    }

    /// The status of its network interfaces, in order.
    #[must_use]
    pub fn nets(&self) -> Vec<NetStatus> {
        self.receivers.iter().map(Receiver::status).collect()
    }

    /// Connects the network interface number `index` to something else; the guest sees its link come up, if it was
    /// down. Takes effect at once while the machine runs, else at the resume.
    pub fn plug(&mut self, index: usize, backend: &NetBackend) -> Result<(), MachineError> {
        let receiver = self.receivers.get(index).ok_or_else(|| MachineError::Config {
            what: format!("there is no network interface number {index}"),
            help: format!("The machine has {}, counted from 0", self.receivers.len()),
        })?;
        receiver.plug(Link::open(backend)?);
        Ok(())
    }

    /// Whether the guest's time-stamp counter can be stopped with it. A KVM that interprets guests may leave the
    /// counter to the hardware: then it continues during every pause and rollback, whatever the clock policy.
    #[must_use]
    pub fn moves_tsc(&self) -> bool {
        self.shape.moves_tsc()
    }

    /// Why the guest has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.gate.ended()
    }

    fn needs_pause(&self, doing: &'static str) -> Result<(), MachineError> {
        if self.gate.is_open() { Err(MachineError::RunState { doing, needed: "paused" }) } else { Ok(()) }
    }

    fn kick(&self) {
        self.vcpus.iter().for_each(Vcpu::kick);
    }
}

impl Drop for KvmMachine {
    fn drop(&mut self) {
        self.gate.end(|| self.vcpus.iter().for_each(Vcpu::kick));
    }
}

impl Machine for KvmMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { clock_jump: true, disk_blocks: true, hot_plug: false, line_writes: true }
    }

    fn run_state(&mut self) -> RunState {
        if self.gate.ended().is_some() {
            RunState::PoweredOff
        } else if self.gate.is_open() {
            RunState::Running
        } else {
            RunState::Paused
        }
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.gate.close(|| self.kick());
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        if let Some(reason) = self.gate.ended() {
            return Err(MachineError::Gone { machine: self.identity.name.clone(), reason });
        }
        if self.needs_state {
            return Err(MachineError::RunState { doing: "running on", needed: "restored" });
        }
        self.gate.open();
        self.input_gate.notify();
        Ok(())
    }
}

impl MemoryIo for KvmMachine {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        // Also at the first call, which starts the log.
        let taken = self.vm.take_dirty(into);
        self.device_memory.take_dirty(into);
        if let Err(error) = taken {
            // The dirty frames that were taken are in no log any more: the next call returns all.
            self.reports_all = true;
            return Err(error);
        }
        if self.reports_all {
            into.union(&PageSet::full(&self.identity.layout));
            self.reports_all = false;
        }
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &self.ram
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        self.needs_pause("writing memory")?;
        Ok(self.ram.write_page(gfn, content)?)
    }

    fn write_lines(&mut self, gfn: Gfn, content: PageContent<'_>, lines: u64) -> Result<(), MachineError> {
        self.needs_pause("writing memory")?;
        Ok(self.ram.write_lines(gfn, content, lines)?)
    }
}

impl StateIo for KvmMachine {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.needs_pause("capturing the state")?;
        let mut state = MachineState::default();
        let mut section = |format: String, bytes| state.sections.push(StateSection { format, bytes });
        section(VM_FORMAT.into(), encode("the virtual machine", &self.vm.save()?)?);
        if !self.vcpus.iter().all(Vcpu::is_known) {
            self.gate.request_state_save(self.vcpus.len());
        }
        for vcpu in &self.vcpus {
            let (bytes, registers) = vcpu.core().take_saved()?;
            section(VCPU_FORMAT.into(), bytes);
            state.vcpus.push(registers);
        }
        for (format, bytes) in self.bus.save()? {
            state.sections.push(StateSection { format: format!("{DEVICE_FORMAT}{format}"), bytes });
        }
        // Last: what it retains would leak if something failed after it.
        state.disks = self.disks.capture();
        Ok(state)
    }

    fn sync_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        Ok(())
    }

    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        self.needs_pause("applying a state")?;
        let mut vm = None;
        let (mut vcpus, mut devices) = (Vec::new(), Vec::new());
        for section in &state.sections {
            match &section.format[..] {
                VM_FORMAT => vm = Some(decode::<VmState>("the virtual machine", &section.bytes)?),
                VCPU_FORMAT => vcpus.push(decode::<VcpuState>("a vCPU", &section.bytes)?),
                other => match other.strip_prefix(DEVICE_FORMAT) {
                    Some(device) => devices.push((device, &section.bytes[..])),
                    None => return Err(mismatch("a section of the state", other, "not known")),
                },
            }
        }
        let Some(vm) = vm else {
            return Err(mismatch("the state of the virtual machine", "absent", "there"));
        };
        if vcpus.len() != self.vcpus.len() {
            return Err(mismatch(
                "the number of vCPUs",
                &vcpus.len().to_string(),
                &self.vcpus.len().to_string(),
            ));
        }
        self.disks.check(&state.disks)?;
        // Until all of it is applied, the guest must not run.
        self.needs_state = true;
        let gap = self.vm.restore_clock(&vm, clock, self.shape.tsc_khz)?;
        let is_quiet = self.vm.is_quiet(&vm)?;
        for (vcpu, state) in self.vcpus.iter().zip(&vcpus) {
            vcpu.core().restore(state, gap, is_quiet)?;
        }
        self.vm.restore_chips(&vm)?;
        self.bus.restore(&devices)?;
        self.disks.apply(&state.disks)?;
        self.gate.revive();
        self.needs_state = false;
        Ok(())
    }

    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        self.disks.release(&state.disks);
        Ok(())
    }
}

impl DiskIo for KvmMachine {
    fn disks(&self) -> &[DiskShape] {
        self.disks.shapes()
    }

    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        self.disks.changes(at, since)
    }

    fn disk_blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        self.disks.blocks(at)
    }

    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        Ok(self.disks.kept())
    }

    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        self.needs_pause("writing a disk")?;
        self.disks.write(disk, first, contents)
    }
}

fn mismatch(what: &str, expected: &str, found: &str) -> MachineError {
    MachineError::Mismatch { what: what.into(), expected: expected.into(), found: found.into() }
}

/// An identifier that no other machine has.
pub(super) fn generation_id() -> Result<[u8; 16], MachineError> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(|errno| {
        MachineError::Io { doing: "making a generation identifier".into(), source: errno.into() }
    })?;
    Ok(id)
}
