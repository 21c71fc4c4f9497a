//! A machine that is only memory: no vCPU runs. Tests, and tools that build a guest's memory by hand, use it.

use std::collections::BTreeMap;

use retrovisor_guest::{
    Accelerator, ClockPolicy, DiskState, Gfn, Gpa, Machine, MachineError, MachineIdentity, MachineState,
    MemoryError, MemoryLayout, MemoryView, PAGE_SIZE, PageContent, PageSet, RunState, StateSection,
    VcpuRegisters,
};

use crate::ram::Ram;

/// The format of the one state section.
const FORMAT: &str = "retrovisor-memory/1";
/// The name of the toy disk.
const DISK: &str = "d0";

/// Memory, one vCPU's registers that nobody changes but the caller, some bytes that stand for devices,
/// and a toy disk. Everything the real drivers must put back, this one puts back.
pub struct MemoryMachine {
    identity: MachineIdentity,
    ram: Ram,
    dirty: PageSet,
    paused: bool,
    registers: VcpuRegisters,
    device: Vec<u8>,
    disk: Vec<u8>,
    disk_snapshots: BTreeMap<String, Vec<u8>>,
    next_snapshot: u64,
}

impl MemoryMachine {
    /// A running machine with memory of zeros.
    pub fn new(name: &str, layout: MemoryLayout) -> Result<Self, MachineError> {
        Ok(Self {
            ram: Ram::anonymous(layout.clone())?,
            dirty: PageSet::full(&layout),
            paused: false,
            registers: VcpuRegisters::default(),
            device: Vec::new(),
            disk: Vec::new(),
            disk_snapshots: BTreeMap::new(),
            next_snapshot: 1,
            identity: MachineIdentity {
                name: name.to_owned(),
                driver: "memory".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                accelerator: Accelerator::None,
                vcpus: 1,
                layout,
            },
        })
    }

    /// Writes as the guest would: across page borders, and the frames become dirty.
    /// Bytes before an address that is not memory are written.
    pub fn poke(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MachineError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = gpa.checked_add(done as u64).ok_or(MemoryError::NotMemory { gpa })?;
            let offset = at.offset_in_page();
            let length = (PAGE_SIZE - offset).min(bytes.len() - done);
            let mut page = [0; PAGE_SIZE];
            self.ram.read_page(at.gfn(), &mut page)?;
            page[offset..offset + length].copy_from_slice(&bytes[done..done + length]);
            self.ram.write_page(at.gfn(), PageContent::Data(&page))?;
            self.dirty.insert(at.gfn());
            done += length;
        }
        Ok(())
    }

    /// The vCPU's registers, to look at and to change.
    pub fn registers_mut(&mut self) -> &mut VcpuRegisters {
        &mut self.registers
    }

    /// The bytes that stand for device state, to look at and to change.
    pub fn device_mut(&mut self) -> &mut Vec<u8> {
        &mut self.device
    }

    /// The toy disk's bytes, to look at and to change.
    pub fn disk_mut(&mut self) -> &mut Vec<u8> {
        &mut self.disk
    }

    /// How many states of the disk are set aside.
    #[must_use]
    pub fn disk_snapshots(&self) -> usize {
        self.disk_snapshots.len()
    }

    fn needs_pause(&self, doing: &'static str) -> Result<(), MachineError> {
        if self.paused { Ok(()) } else { Err(MachineError::RunState { doing, needed: "paused" }) }
    }
}

impl Machine for MemoryMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn run_state(&mut self) -> RunState {
        if self.paused { RunState::Paused } else { RunState::Running }
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.paused = false;
        Ok(())
    }

    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        into.union(&self.dirty);
        self.dirty.clear();
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &self.ram
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.needs_pause("capturing the state")?;
        let reference = format!("m{}", self.next_snapshot);
        self.next_snapshot += 1;
        self.disk_snapshots.insert(reference.clone(), self.disk.clone());
        Ok(MachineState {
            vcpus: vec![self.registers.clone()],
            sections: vec![StateSection { format: FORMAT.into(), bytes: self.device.clone() }],
            disks: vec![DiskState { disk: DISK.into(), reference }],
        })
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        self.needs_pause("writing memory")?;
        Ok(self.ram.write_page(gfn, content)?)
    }

    fn apply_state(&mut self, state: &MachineState, _clock: ClockPolicy) -> Result<(), MachineError> {
        self.needs_pause("applying a state")?;
        let [registers] = &state.vcpus[..] else {
            return Err(mismatch("the number of vCPUs", "1", state.vcpus.len()));
        };
        let [section] = &state.sections[..] else {
            return Err(mismatch("the number of state sections", "1", state.sections.len()));
        };
        if section.format != FORMAT {
            return Err(mismatch("the state format", FORMAT, &section.format));
        }
        let mut disk = None;
        for wanted in &state.disks {
            let kept = self.disk_snapshots.get(&wanted.reference).filter(|_| wanted.disk == DISK);
            disk = Some(kept.ok_or_else(|| {
                mismatch(
                    "the disk",
                    "without this snapshot",
                    format!("{} at {}", wanted.disk, wanted.reference),
                )
            })?);
        }
        if let Some(disk) = disk {
            self.disk.clone_from(disk);
        }
        self.registers.clone_from(registers);
        self.device.clone_from(&section.bytes);
        Ok(())
    }

    fn sync_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        Ok(())
    }

    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        for disk in &state.disks {
            self.disk_snapshots.remove(&disk.reference);
        }
        Ok(())
    }
}

fn mismatch(what: &str, found: &str, expected: impl std::fmt::Display) -> MachineError {
    MachineError::Mismatch { what: what.into(), expected: expected.to_string(), found: found.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MemoryMachine {
        MemoryMachine::new("m", MemoryLayout::flat(8 * 4096).unwrap()).unwrap()
    }

    fn dirty(machine: &mut MemoryMachine) -> Vec<u64> {
        let mut set = PageSet::empty(&machine.identity.layout);
        machine.take_dirty(&mut set).unwrap();
        set.iter().map(|gfn| gfn.0).collect()
    }

    #[test]
    fn dirty_is_everything_first_and_then_what_was_poked() {
        let mut machine = machine();
        assert_eq!(dirty(&mut machine).len(), 8);
        machine.poke(Gpa(2 * 4096 - 1), b"ab").unwrap();
        assert_eq!(dirty(&mut machine), [1, 2]);
        assert!(dirty(&mut machine).is_empty());
        let mut bytes = [0; 4];
        machine.memory().read(Gpa(2 * 4096 - 2), &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0ab\0");
        assert!(machine.poke(Gpa(8 * 4096 - 1), b"ab").is_err());
    }

    #[test]
    fn a_state_goes_back_with_registers_devices_and_disk() {
        let mut machine = machine();
        assert!(matches!(machine.capture_state(), Err(MachineError::RunState { .. })));
        machine.pause().unwrap();
        machine.registers_mut().rip = 7;
        machine.device_mut().extend(b"uart");
        machine.disk_mut().extend(b"old");
        let state = machine.capture_state().unwrap();
        machine.registers_mut().rip = 8;
        machine.device_mut().clear();
        machine.disk_mut().extend(b"new");
        machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
        assert_eq!(machine.registers_mut().rip, 7);
        assert_eq!((&machine.device[..], &machine.disk[..]), (&b"uart"[..], &b"old"[..]));
        machine.release_state(&state).unwrap();
        assert_eq!(machine.disk_snapshots(), 0);
        assert!(matches!(
            machine.apply_state(&state, ClockPolicy::StandStill),
            Err(MachineError::Mismatch { .. })
        ));
        let foreign = MachineState { vcpus: vec![VcpuRegisters::default(); 2], ..state };
        assert!(machine.apply_state(&foreign, ClockPolicy::StandStill).is_err());
    }
}
