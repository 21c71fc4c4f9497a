//! A machine that is only memory: no vCPU runs. Tests, and tools that build a guest's memory by hand, use it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::{
    Accelerator, BlockContent, ClockPolicy, DiskChanges, DiskShape, DiskState, Gfn, Gpa, Machine,
    MachineError, MachineIdentity, MachineState, MemoryError, MemoryLayout, MemoryView, PAGE_SIZE,
    PageContent, PageSet, RunState, StateSection, VcpuRegisters,
};

use crate::ram::Ram;

mod disk;

use disk::{MemoryDisk, NAME};

/// The format of the one state section.
const FORMAT: &str = "retrovisor-memory/1";

/// Memory, one vCPU's registers that nobody changes but the caller, some bytes that stand for devices,
/// and a toy disk. Everything the real drivers must put back, this one puts back.
pub struct MemoryMachine {
    identity: MachineIdentity,
    board: Arc<Board>,
    registers: VcpuRegisters,
    device: Vec<u8>,
    disk: MemoryDisk,
}

/// What stands in for a vCPU: another thread writes the guest's memory through it while the machine runs. A write
/// waits while the machine is paused.
#[derive(Clone)]
pub struct Writer(Arc<Board>);

/// What the machine and its writers share.
struct Board {
    ram: Ram,
    /// A bit a frame, by index: written since dirty frames were taken last.
    dirty: Vec<AtomicU64>,
    paused: Mutex<bool>,
    resumed: Condvar,
}

impl Board {
    fn paused(&self) -> MutexGuard<'_, bool> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes across page borders; bytes before an address that is not memory are written.
    fn poke(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MachineError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = gpa.checked_add(done as u64).ok_or(MemoryError::NotMemory { gpa })?;
            let length = (PAGE_SIZE - at.offset_in_page()).min(bytes.len() - done);
            self.ram.write_part(at, &bytes[done..done + length])?;
            // After the write: a frame that is taken as dirty in between is dirty again.
            if let Some(index) = self.ram.layout().index(at.gfn())
                && let Some(word) = usize::try_from(index / 64).ok().and_then(|at| self.dirty.get(at))
            {
                word.fetch_or(1 << (index % 64), Ordering::Release);
            }
            done += length;
        }
        Ok(())
    }
}

impl Writer {
    /// Writes as the guest would, as soon as the machine runs: across page borders, and the frames become dirty.
    /// Bytes before an address that is not memory are written.
    pub fn poke(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MachineError> {
        let mut paused = self.0.paused();
        while *paused {
            paused = self.0.resumed.wait(paused).unwrap_or_else(PoisonError::into_inner);
        }
        // Written with the lock held: a pause begins after this write, or before it.
        self.0.poke(gpa, bytes)
    }
}

impl MemoryMachine {
    /// A running machine with memory of zeros.
    pub fn new(name: &str, layout: MemoryLayout) -> Result<Self, MachineError> {
        let words = usize::try_from(layout.pages().div_ceil(64)).unwrap_or(usize::MAX);
        Ok(Self {
            board: Arc::new(Board {
                ram: Ram::anonymous(layout.clone())?,
                dirty: std::iter::repeat_with(|| AtomicU64::new(u64::MAX)).take(words).collect(),
                paused: Mutex::new(false),
                resumed: Condvar::new(),
            }),
            registers: VcpuRegisters::default(),
            device: Vec::new(),
            disk: MemoryDisk::default(),
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

    /// The same, with a disk whose blocks can be read and written; it begins as `base`, and keeps its length.
    #[must_use]
    pub fn with_disk(mut self, base: Vec<u8>) -> Self {
        self.disk = MemoryDisk::over(base);
        self
    }

    /// What the disk is said to be: to lie about its base image, as no driver should.
    pub fn disk_shapes_mut(&mut self) -> &mut [DiskShape] {
        self.disk.shapes_mut()
    }

    /// Writes as the guest would: across page borders, and the frames become dirty.
    /// Bytes before an address that is not memory are written.
    pub fn poke(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MachineError> {
        self.board.poke(gpa, bytes)
    }

    /// A way to write the guest's memory from another thread, as a vCPU would.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer(Arc::clone(&self.board))
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
        &mut self.disk.bytes
    }

    /// How many states of the disk are set aside.
    #[must_use]
    pub fn disk_snapshots(&self) -> usize {
        self.disk.snapshots()
    }

    fn needs_pause(&self, doing: &'static str) -> Result<(), MachineError> {
        if *self.board.paused() { Ok(()) } else { Err(MachineError::RunState { doing, needed: "paused" }) }
    }
}

impl Machine for MemoryMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn run_state(&mut self) -> RunState {
        if *self.board.paused() { RunState::Paused } else { RunState::Running }
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        *self.board.paused() = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        *self.board.paused() = false;
        self.board.resumed.notify_all();
        Ok(())
    }

    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        for (at, word) in self.board.dirty.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                into.insert_word(at, word.swap(0, Ordering::Acquire));
            }
        }
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &self.board.ram
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        self.needs_pause("capturing the state")?;
        Ok(MachineState {
            vcpus: vec![self.registers.clone()],
            sections: vec![StateSection { format: FORMAT.into(), bytes: self.device.clone() }],
            disks: vec![self.disk.keep()],
        })
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        self.needs_pause("writing memory")?;
        Ok(self.board.ram.write_page(gfn, content)?)
    }

    fn write_lines(&mut self, gfn: Gfn, content: PageContent<'_>, lines: u64) -> Result<(), MachineError> {
        self.needs_pause("writing memory")?;
        Ok(self.board.ram.write_lines(gfn, content, lines)?)
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
            if *wanted == DiskState::as_it_is(NAME) {
                continue;
            }
            let kept = self.disk.find(wanted).map(Arc::clone);
            disk = Some(kept.ok_or_else(|| {
                mismatch(
                    "the disk",
                    "without this snapshot",
                    format!("{} at {}", wanted.disk, wanted.reference),
                )
            })?);
        }
        if let Some(disk) = disk {
            self.disk.bytes.clone_from(&disk);
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
            self.disk.release(disk);
        }
        Ok(())
    }

    fn disks(&self) -> &[DiskShape] {
        self.disk.shapes()
    }

    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        self.disk.changes(at, since)
    }

    fn kept_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        Ok(self.disk.kept())
    }

    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        self.needs_pause("writing a disk")?;
        if disk != NAME {
            return Err(mismatch("the disk", NAME, disk));
        }
        self.disk.write(first, contents)
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
    fn a_writer_waits_while_the_machine_is_paused() {
        let mut machine = machine();
        dirty(&mut machine);
        machine.pause().unwrap();
        let writer = machine.writer();
        let thread = std::thread::spawn(move || writer.poke(Gpa(3 * 4096), b"x"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!thread.is_finished());
        assert!(dirty(&mut machine).is_empty());
        machine.resume().unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(dirty(&mut machine), [3]);
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
        assert_eq!((&machine.device[..], &machine.disk.bytes[..]), (&b"uart"[..], &b"old"[..]));
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
