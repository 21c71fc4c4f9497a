use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use retrovisor_guest::{
    Accelerator, Capabilities, ClockPolicy, DiskIo, Gfn, Machine, MachineError, MachineIdentity,
    MachineState, MemoryError, MemoryIo, MemoryLayout, MemoryView, PAGE_SIZE, Page, PageContent, PageSet,
    RunState, StateIo,
};
use retrovisor_snapshot::{Access, CheckpointRequest, Recorder, Store, image_hash};

use crate::Archiver;

/// Our store, fed with images.
pub(crate) struct Ours {
    store: Arc<Store>,
    recorder: Option<Recorder>,
}

impl Ours {
    pub(crate) fn create(dir: &Path) -> Self {
        Self { store: Arc::new(Store::open(dir, Access::Create).unwrap()), recorder: None }
    }

    /// The newest checkpoint is this image, bit for bit.
    pub(crate) fn check(&self, image: &Path) {
        let newest = self.recorder.as_ref().and_then(Recorder::position).unwrap().checkpoint;
        let wanted = image_hash(&ImageMachine::open(image).image).unwrap();
        assert_eq!(self.store.image_hash(newest).unwrap(), wanted, "the store has another image");
        assert!(self.store.verify(&mut |_| ()).unwrap().damaged.is_empty());
    }
}

impl Archiver for Ours {
    fn name(&self) -> &'static str {
        crate::OURS
    }

    fn keep(&mut self, image: &Path) {
        let mut machine = ImageMachine::open(image);
        let recorder = self.recorder.get_or_insert_with(|| {
            let id = self.store.catalogue().add_machine(machine.identity()).unwrap().id;
            Recorder::new(Arc::clone(&self.store), id).unwrap()
        });
        recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
    }

    fn stored_bytes(&self) -> u64 {
        self.store.size().unwrap()
    }
}

/// An image as a machine that never runs, and says of every frame that it may have changed.
struct ImageMachine {
    identity: MachineIdentity,
    image: Image,
}

struct Image {
    layout: MemoryLayout,
    file: File,
}

impl ImageMachine {
    fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let layout = MemoryLayout::flat(file.metadata().unwrap().len()).unwrap();
        let identity = MachineIdentity {
            name: "images".into(),
            driver: "image".into(),
            version: "1".into(),
            accelerator: Accelerator::None,
            vcpus: 0,
            layout: layout.clone(),
        };
        Self { identity, image: Image { layout, file } }
    }
}

impl MemoryView for Image {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let index = self.layout.index(gfn).ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        self.file.read_exact_at(into, index * PAGE_SIZE as u64).map_err(MemoryError::Host)
    }
}

impl Machine for ImageMachine {
    fn identity(&self) -> &MachineIdentity {
        &self.identity
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn run_state(&mut self) -> RunState {
        RunState::Paused
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        Ok(())
    }
}

impl MemoryIo for ImageMachine {
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        *into = PageSet::full(&self.identity.layout);
        Ok(())
    }

    fn memory(&self) -> &dyn MemoryView {
        &self.image
    }

    fn write_page(&mut self, _: Gfn, _: PageContent<'_>) -> Result<(), MachineError> {
        Err(read_only())
    }
}

impl StateIo for ImageMachine {
    fn check_devices(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn capture_state(&mut self) -> Result<MachineState, MachineError> {
        Ok(MachineState::default())
    }

    fn sync_state(&mut self, _: &MachineState) -> Result<(), MachineError> {
        Ok(())
    }

    fn apply_state(&mut self, _: &MachineState, _: ClockPolicy) -> Result<(), MachineError> {
        Err(read_only())
    }

    fn release_state(&mut self, _: &MachineState) -> Result<(), MachineError> {
        Ok(())
    }
}

impl DiskIo for ImageMachine {}

fn read_only() -> MachineError {
    MachineError::Config { what: "an image is only read".into(), help: "Start a machine from it".into() }
}
