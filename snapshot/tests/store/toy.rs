//! A machine whose parts can all be read, changed and made to fail; and a store in a temporary directory.

use std::path::Path;
use std::sync::Arc;

use retrovisor_guest::{
    Accelerator, Capabilities, ClockPolicy, DiskIo, Gfn, Machine, MachineError, MachineIdentity,
    MachineState, MemoryError, MemoryIo, MemoryLayout, MemoryView, PAGE_SIZE, Page, PageContent, PageSet,
    RunState, StateIo, StateSection, VcpuRegisters,
};
use retrovisor_snapshot::{Access, CheckpointKind, CheckpointRequest, MachineId, Recorder, Store};

/// The content of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Zero,
    Removed,
    Data(Box<Page>),
}

/// The parts of a toy that a checkpoint includes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) frames: Vec<Frame>,
    pub(crate) registers: VcpuRegisters,
    pub(crate) device: Vec<u8>,
}

/// Calls that fail, counted down: 1 is the next one.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) take_dirty: u32,
    pub(crate) check_devices: u32,
    pub(crate) capture_state: u32,
    pub(crate) sync_state: u32,
    pub(crate) write_page: u32,
    pub(crate) apply_state: u32,
    /// The next `apply_state` is a panic of the driver.
    pub(crate) apply_panics: bool,
}

pub(crate) struct Toy {
    pub(crate) identity: MachineIdentity,
    pub(crate) image: Image,
    pub(crate) dirty: PageSet,
    pub(crate) paused: bool,
    /// Whether its clock can jump.
    pub(crate) clock_jump: bool,
    pub(crate) faults: Faults,
    /// States captured and not released.
    pub(crate) held: i64,
    /// While this is above zero, the guest writes whenever it can: right after dirty pages were taken, and until it is
    /// stopped.
    pub(crate) restless: u64,
    /// Its contents at the last capture.
    pub(crate) captured: Option<Image>,
}

impl Toy {
    pub(crate) fn new(layout: &MemoryLayout) -> Self {
        Self {
            identity: MachineIdentity {
                name: "toy".into(),
                driver: "toy".into(),
                version: "1".into(),
                accelerator: Accelerator::None,
                vcpus: 1,
                layout: layout.clone(),
            },
            image: Image {
                frames: vec![Frame::Zero; usize::try_from(layout.pages()).unwrap()],
                registers: VcpuRegisters::default(),
                device: Vec::new(),
            },
            dirty: PageSet::full(layout),
            paused: false,
            clock_jump: true,
            faults: Faults::default(),
            held: 0,
            restless: 0,
            captured: None,
        }
    }

    /// The identity of a toy with another name.
    pub(crate) fn named(name: &str, layout: &MemoryLayout) -> MachineIdentity {
        MachineIdentity { name: name.into(), ..Self::new(layout).identity }
    }

    /// The guest writes.
    pub(crate) fn set(&mut self, index: usize, frame: Frame) {
        self.image.frames[index] = frame;
        self.dirty.insert_index(index as u64);
    }

    fn fidget(&mut self) {
        if self.restless > 0 && !self.paused {
            for _ in 0..7 {
                self.restless =
                    self.restless.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(12_345) | 1;
                let index = usize::try_from(self.restless >> 33).unwrap() % self.image.frames.len();
                self.scribble(index, self.restless);
            }
        }
    }

    /// The guest fills a page with numbers that follow from a seed.
    pub(crate) fn scribble(&mut self, index: usize, seed: u64) {
        self.set(index, Frame::Data(Box::new(page_of(seed))));
    }
}

/// A page that half compresses, different for each seed.
pub(crate) fn page_of(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in page.chunks_exact_mut(16) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chunk[..8].copy_from_slice(&state.to_le_bytes());
    }
    page[..8].copy_from_slice(&seed.to_le_bytes());
    page[8] = 1;
    page
}

fn due(count: &mut u32, doing: &str) -> Result<(), MachineError> {
    if *count == 0 {
        return Ok(());
    }
    *count -= 1;
    if *count > 0 {
        return Ok(());
    }
    Err(MachineError::Driver { doing: doing.into(), message: "injected".into() })
}

impl MemoryView for Toy {
    fn layout(&self) -> &MemoryLayout {
        &self.identity.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let index = self.layout().index(gfn).ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        match &self.image.frames[usize::try_from(index).unwrap()] {
            Frame::Data(page) => into.copy_from_slice(&page[..]),
            Frame::Zero | Frame::Removed => into.fill(0),
        }
        Ok(())
    }
    fn removed(&self, gfn: Gfn) -> bool {
        let index = self.layout().index(gfn).map(|index| usize::try_from(index).unwrap());
        index.is_some_and(|index| self.image.frames[index] == Frame::Removed)
    }
}

impl Machine for Toy {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { clock_jump: self.clock_jump, ..Capabilities::default() }
    }

    fn run_state(&mut self) -> RunState {
        if self.paused { RunState::Paused } else { RunState::Running }
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.fidget();
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.paused = false;
        Ok(())
    }
}

impl MemoryIo for Toy {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        due(&mut self.faults.take_dirty, "taking dirty pages")?;
        into.union(&self.dirty);
        self.dirty.clear();
        self.fidget();
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        self
    }

    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError> {
        assert!(self.paused);
        due(&mut self.faults.write_page, "writing a page")?;
        let index = usize::try_from(self.identity.layout.index(gfn).unwrap()).unwrap();
        self.image.frames[index] = match content {
            PageContent::Zero => Frame::Zero,
            PageContent::Removed => Frame::Removed,
            PageContent::Data(page) => Frame::Data(Box::new(*page)),
        };
        Ok(())
    }
}

impl StateIo for Toy {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        due(&mut self.faults.check_devices, "comparing the devices")
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        assert!(self.paused);
        due(&mut self.faults.capture_state, "capturing the state")?;
        self.held += 1;
        self.captured = Some(self.image.clone());
        Ok(MachineState {
            vcpus: vec![self.image.registers.clone()],
            sections: vec![StateSection { format: "toy/1".into(), bytes: self.image.device.clone() }],
            disks: vec![],
        })
    }

    fn apply_state(&mut self, state: &MachineState, _clock: ClockPolicy) -> Result<(), MachineError> {
        assert!(self.paused);
        assert!(!self.faults.apply_panics, "injected panic");
        due(&mut self.faults.apply_state, "applying a state")?;
        self.image.registers = state.vcpus[0].clone();
        self.image.device.clone_from(&state.sections[0].bytes);
        Ok(())
    }

    fn sync_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        due(&mut self.faults.sync_state, "making the disks durable")
    }

    fn release_state(&mut self, _state: &MachineState) -> Result<(), MachineError> {
        self.held -= 1;
        Ok(())
    }
}

impl DiskIo for Toy {}

/// A store, a toy in it, and its recorder.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) toy: Toy,
    pub(crate) recorder: Recorder,
    pub(crate) machine: MachineId,
}

impl Lab {
    pub(crate) fn new(pages: u64) -> Self {
        Self::with(&MemoryLayout::flat(pages * PAGE_SIZE as u64).unwrap())
    }

    pub(crate) fn with(layout: &MemoryLayout) -> Self {
        let dir = quick_dir();
        let store = open(dir.path());
        let toy = Toy::new(layout);
        let machine = store.catalogue().add_machine(&toy.identity).unwrap().id;
        let recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
        Self { dir, store, toy, recorder, machine }
    }

    pub(crate) fn checkpoint(&mut self) -> retrovisor_snapshot::CheckpointRecord {
        self.recorder.checkpoint(&mut self.toy, &CheckpointRequest::default()).unwrap().record
    }

    pub(crate) fn label(&mut self, label: &str) -> retrovisor_snapshot::CheckpointRecord {
        let request = CheckpointRequest { label: Some(label.into()), kind: CheckpointKind::Manual };
        self.recorder.checkpoint(&mut self.toy, &request).unwrap().record
    }
}

/// A directory in memory, if there is one: most tests need not wait for a disk.
pub(crate) fn quick_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub(crate) fn open(dir: &Path) -> Arc<Store> {
    Arc::new(Store::open(dir, Access::Create).unwrap())
}
