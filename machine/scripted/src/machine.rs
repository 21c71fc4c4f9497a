use std::sync::Arc;

use retrovisor_guest::{
    Accelerator, BlockContent, Capabilities, ClockPolicy, DiskBlocks, DiskChanges, DiskIo, DiskShape,
    DiskState, Gfn, Gpa, GuestEvent, Machine, MachineError, MachineIdentity, MachineState, MemoryIo,
    MemoryLayout, MemoryView, PAGE_SIZE, PageContent, PageSet, RunState, StateIo, StateSection,
    VcpuRegisters, ZERO_PAGE,
};

use crate::disk::{MemoryDisk, NAME};
use crate::memory::Memory;
use crate::script::{Method, Script};

/// The format of the one state section.
const FORMAT: &str = "retrovisor-memory/1";

/// Memory, one vCPU's registers that only the caller changes, some bytes in place of devices, and a disk in memory. It
/// restores everything that the real drivers must restore. Its [`Script`] makes calls fail.
pub struct MemoryMachine {
    identity: MachineIdentity,
    capabilities: Capabilities,
    memory: Arc<Memory>,
    script: Script,
    registers: VcpuRegisters,
    device: Vec<u8>,
    disk: MemoryDisk,
    /// Memory was written, or a state failed to apply: the guest must not run before a state is applied.
    needs_state: bool,
}

/// Replaces a vCPU: another thread writes the guest's memory through it while the machine runs. A write waits while the
/// machine is paused.
#[derive(Clone)]
pub struct Writer {
    memory: Arc<Memory>,
    script: Script,
}

impl Writer {
    /// Writes as the guest does, as soon as the machine runs: across page borders, and the frames become dirty.
    /// Bytes before an address that is not memory are written.
    pub fn poke(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MachineError> {
        // A pause begins after this write, or before it.
        Ok(self.script.while_running(|| self.memory.guest_writes(gpa, bytes, true))?)
    }
}

impl MemoryMachine {
    /// A running machine with memory of zeros.
    pub fn new(name: &str, layout: MemoryLayout) -> Result<Self, MachineError> {
        Ok(Self {
            memory: Arc::new(Memory::new(layout.clone())?),
            script: Script::new(RunState::Running),
            capabilities: Capabilities {
                clock_jump: true,
                disk_blocks: false,
                hot_plug: false,
                line_writes: true,
            },
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
            needs_state: false,
        })
    }

    /// The same, with a disk whose blocks can be read and written; it begins as `base`, and keeps its length.
    #[must_use]
    pub fn with_disk(mut self, base: Vec<u8>) -> Self {
        self.disk = MemoryDisk::over(base);
        self.capabilities.disk_blocks = true;
        self
    }

    /// The same, with other capabilities. A machine without `clock_jump` refuses [`ClockPolicy::JumpToNow`].
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// The script that makes its calls fail.
    #[must_use]
    pub fn script(&self) -> Script {
        self.script.clone()
    }

    /// The disk's shapes, to be changed as no driver may.
    pub fn disk_shapes_mut(&mut self) -> &mut [DiskShape] {
        self.disk.shapes_mut()
    }

    /// Writes as the guest does: across page borders, and the frames become dirty.
    /// Bytes before an address that is not memory are written.
    pub fn poke(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MachineError> {
        Ok(self.memory.guest_writes(gpa, bytes, true)?)
    }

    /// Writes as the guest does, but the frames do not become dirty: simulates a defective dirty finder.
    pub fn poke_unreported(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MachineError> {
        Ok(self.memory.guest_writes(gpa, bytes, false)?)
    }

    /// A way to write the guest's memory from another thread, as a vCPU does.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer { memory: Arc::clone(&self.memory), script: self.script.clone() }
    }

    /// The vCPU's registers, to be read and changed.
    pub fn registers_mut(&mut self) -> &mut VcpuRegisters {
        &mut self.registers
    }

    /// The bytes in place of device state, to be read and changed.
    pub fn device_mut(&mut self) -> &mut Vec<u8> {
        &mut self.device
    }

    /// Writes to the disk as the guest does, but the blocks do not count as changed in the next captured state: simulates
    /// a defective search for changed blocks. Bytes past the end are ignored.
    pub fn write_disk_unreported(&mut self, offset: u64, bytes: &[u8]) {
        self.disk.write_unreported(offset, bytes);
    }

    /// The disk's bytes, to be read and changed.
    pub fn disk_mut(&mut self) -> &mut Vec<u8> {
        &mut self.disk.bytes
    }

    /// How many snapshots of the disk are retained.
    #[must_use]
    pub fn disk_snapshots(&self) -> usize {
        self.disk.snapshots()
    }

    fn is_there(&self) -> Result<(), MachineError> {
        if self.script.run_state() != RunState::Gone {
            return Ok(());
        }
        let machine = self.identity.name.clone();
        Err(MachineError::Gone { machine, reason: "the script ended it".into() })
    }

    fn needs_pause(&self, doing: &'static str) -> Result<(), MachineError> {
        self.is_there()?;
        if self.script.run_state() == RunState::Running {
            return Err(MachineError::RunState { doing, needed: "paused" });
        }
        Ok(())
    }

    fn put_back(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        self.needs_pause("applying a state")?;
        self.capabilities.check_clock(clock)?;
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
            if *wanted == DiskState::unchanged(NAME) {
                continue;
            }
            let retained = self.disk.find(wanted).map(Arc::clone);
            disk = Some(retained.ok_or_else(|| {
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
}

impl Machine for MemoryMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn run_state(&mut self) -> RunState {
        match self.script.begin(Method::RunState) {
            Ok(_) => self.script.run_state(),
            Err(_) => RunState::Gone,
        }
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.script.call(Method::Pause, || {
            self.is_there()?;
            if self.script.run_state() == RunState::Running {
                self.script.enter(RunState::Paused);
            }
            Ok(())
        })
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.script.call(Method::Resume, || {
            self.is_there()?;
            if self.needs_state || self.script.run_state().has_ended() {
                return Err(MachineError::RunState { doing: "resuming", needed: "restored" });
            }
            self.script.enter(RunState::Running);
            Ok(())
        })
    }

    fn events(&mut self) -> Vec<GuestEvent> {
        if self.script.begin(Method::Events).is_ok() { self.script.take_events() } else { Vec::new() }
    }
}

impl MemoryIo for MemoryMachine {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        // A call that fails after its work has taken nothing: the next one must report the frames.
        let fails_after = self.script.begin(Method::TakeDirty)?;
        self.is_there()?;
        if fails_after {
            return Err(MachineError::Driver {
                doing: "taking dirty frames".into(),
                message: "the script has it fail".into(),
            });
        }
        self.memory.take_dirty(into);
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &*self.memory
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        self.script.call(Method::WritePage, || {
            self.needs_pause("writing memory")?;
            Ok(self.memory.write_page(gfn, content.bytes())?)
        })
    }

    fn write_lines(&mut self, gfn: Gfn, content: PageContent<'_>, lines: u64) -> Result<(), MachineError> {
        self.script.call(Method::WriteLines, || {
            self.needs_pause("writing memory")?;
            let mut page = ZERO_PAGE;
            self.memory.read_page(gfn, &mut page)?;
            let size = PAGE_SIZE / 64;
            for line in (0..64).filter(|line| lines >> line & 1 == 1) {
                page[line * size..][..size].copy_from_slice(&content.bytes()[line * size..][..size]);
            }
            Ok(self.memory.write_page(gfn, &page)?)
        })
    }
}

impl StateIo for MemoryMachine {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        self.script.call(Method::CheckDevices, || self.is_there())
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        let fails_after = self.script.begin(Method::CaptureState)?;
        self.needs_pause("capturing the state")?;
        let state = MachineState {
            vcpus: vec![self.registers.clone()],
            sections: vec![StateSection { format: FORMAT.into(), bytes: self.device.clone() }],
            disks: vec![self.disk.retain()],
        };
        if fails_after {
            // A call that fails retains nothing.
            state.disks.iter().for_each(|disk| self.disk.release(disk));
            return Err(MachineError::Driver {
                doing: "capturing the state".into(),
                message: "the script has it fail".into(),
            });
        }
        Ok(state)
    }

    fn sync_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        self.script.call(Method::SyncState, || self.is_there())
    }

    fn check_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        self.script.call(Method::CheckState, || self.is_there())
    }

    fn apply_state(&mut self, state: &MachineState, clock: ClockPolicy) -> Result<(), MachineError> {
        let fails_after = self.script.begin(Method::ApplyState)?;
        self.put_back(state, clock)?;
        self.needs_state = fails_after;
        if fails_after {
            return Err(MachineError::Driver {
                doing: "applying a state".into(),
                message: "the script has it fail".into(),
            });
        }
        self.script.enter(RunState::Paused);
        Ok(())
    }

    fn release_state(&mut self, state: &MachineState) -> Result<(), MachineError> {
        let script = self.script.clone();
        script.call(Method::ReleaseState, || {
            self.is_there()?;
            for disk in &state.disks {
                self.disk.release(disk);
            }
            Ok(())
        })
    }
}

impl DiskIo for MemoryMachine {
    fn disks(&self) -> &[DiskShape] {
        self.disk.shapes()
    }

    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        self.script.call(Method::DiskChanges, || self.disk.changes(at, since))
    }

    fn disk_blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        self.script.call(Method::DiskBlocks, || self.disk.blocks(at))
    }

    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        self.script.call(Method::RetainedDisks, || {
            self.is_there()?;
            Ok(self.disk.retained())
        })
    }

    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        let script = self.script.clone();
        script.call(Method::WriteBlocks, || {
            self.needs_pause("writing a disk")?;
            if disk != NAME {
                return Err(mismatch("the disk", NAME, disk));
            }
            self.disk.write(first, contents)
        })
    }
}

fn mismatch(what: &str, found: &str, expected: impl std::fmt::Display) -> MachineError {
    MachineError::Mismatch { what: what.into(), expected: expected.to_string(), found: found.into() }
}
