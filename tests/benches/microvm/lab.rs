use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_guest::{Gpa, LINE_SIZE, Machine as _, MachineError};
use retrovisor_machine::kvm::bare::{self, Writing};
use retrovisor_machine::kvm::{KvmConfig, KvmMachine, MemorySource, memory_layout};
use retrovisor_snapshot::{
    Access, CheckpointReport, CheckpointRequest, MachineId, Recorder, RecorderSettings, Store,
};

const MEMORY_BYTES: u64 = 1 << 30;
/// What the guest touches before anything is measured.
const TOUCHED_BYTES: u64 = 960 << 20;
pub(crate) const FIRST: Gpa = Gpa(32 << 20);
pub(crate) const PAGE_BYTES: u64 = 4096;

/// The placement of the pages that a guest writes.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    Sequential,
    /// Every second page.
    Strided,
}

impl Order {
    pub(crate) const BOTH: [Self; 2] = [Self::Sequential, Self::Strided];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Strided => "strided",
        }
    }

    fn stride_bytes(self) -> u64 {
        match self {
            Self::Sequential => PAGE_BYTES,
            Self::Strided => 2 * PAGE_BYTES,
        }
    }
}

/// A machine, its store and its recorder.
pub(crate) struct Lab {
    _dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) id: MachineId,
    pub(crate) machine: KvmMachine,
    pub(crate) recorder: Recorder,
}

impl Lab {
    /// All of the guest's memory was written, and a first checkpoint taken; the guest waits. Nothing, loudly, without
    /// KVM.
    pub(crate) fn new() -> Option<Self> {
        let mut machine = match KvmMachine::launch(&config(MemorySource::Fresh)) {
            Ok(machine) => machine,
            Err(error @ (MachineError::Config { .. } | MachineError::Unsupported { .. })) => {
                eprintln!("SKIPPED: no KVM for a bare guest: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
        let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
        let pages = TOUCHED_BYTES / PAGE_BYTES;
        let first = Gpa(MEMORY_BYTES - TOUCHED_BYTES);
        let all = Writing { first, pages, stride_bytes: PAGE_BYTES, idle_turns: 0, rounds: 1 };
        bare::assign(&mut machine, &all).unwrap();
        machine.resume().unwrap();
        while bare::rounds(&machine, 0).unwrap() < 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let recorder = Recorder::new(Arc::clone(&store), id).unwrap();
        let mut lab = Self { _dir: dir, store, id, machine, recorder };
        lab.checkpoint();
        Some(lab)
    }

    /// Another recorder, which has seen the machine once.
    pub(crate) fn record_with(&mut self, settings: RecorderSettings) {
        self.recorder.drain(&mut self.machine);
        self.recorder = Recorder::with_settings(Arc::clone(&self.store), self.id, settings).unwrap();
        self.checkpoint();
    }

    pub(crate) fn checkpoint(&mut self) -> CheckpointReport {
        self.recorder.checkpoint(&mut self.machine, &CheckpointRequest::default()).unwrap()
    }

    /// What a guest does that writes so many pages in a round.
    pub(crate) fn writing(pages: u64, order: Order) -> Writing {
        Writing { first: FIRST, pages, stride_bytes: order.stride_bytes(), idle_turns: 0, rounds: 0 }
    }

    /// The same for a word in every line of so many pages.
    pub(crate) fn writing_lines(pages: u64) -> Writing {
        let lines = PAGE_BYTES / LINE_SIZE as u64;
        Writing {
            first: FIRST,
            pages: pages * lines,
            stride_bytes: LINE_SIZE as u64,
            idle_turns: 0,
            rounds: 0,
        }
    }

    /// The guest writes without end from now on.
    pub(crate) fn go_on(&mut self, writing: &Writing) {
        self.tell(&Writing { rounds: 0, ..*writing });
    }

    /// The guest does so many rounds more, and waits. How long they took.
    pub(crate) fn work(&mut self, writing: &Writing, rounds: u64) -> Duration {
        let until = self.rounds() + rounds;
        let begun = self.begin(writing, until);
        while self.rounds() < until {
            std::thread::sleep(Duration::from_micros(20));
        }
        begun.elapsed()
    }

    /// The guest works until so many rounds are done. When it began.
    pub(crate) fn begin(&mut self, writing: &Writing, until: u64) -> Instant {
        self.tell(&Writing { rounds: until, ..*writing })
    }

    /// The guest, which may be in the middle of a round, comes to a rest.
    pub(crate) fn rest(&mut self) {
        self.tell(&Writing { rounds: 1, ..Self::writing(0, Order::Sequential) });
        let mut last = 0;
        loop {
            let now = self.rounds();
            if now == last {
                return;
            }
            last = now;
            std::thread::sleep(Duration::from_millis(400));
        }
    }

    pub(crate) fn rounds(&self) -> u64 {
        bare::rounds(&self.machine, 0).unwrap()
    }

    pub(crate) fn wait_rounds(&self, more: u64) {
        let until = self.rounds() + more;
        while self.rounds() < until {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// When it ran on.
    fn tell(&mut self, writing: &Writing) -> Instant {
        self.machine.pause().unwrap();
        bare::assign(&mut self.machine, writing).unwrap();
        let begun = Instant::now();
        self.machine.resume().unwrap();
        begun
    }
}

pub(crate) fn config(memory: MemorySource) -> KvmConfig {
    KvmConfig {
        name: "bench".into(),
        layout: memory_layout(MEMORY_BYTES).unwrap(),
        memory,
        vcpus: 1,
        boot: bare::writer(),
        disks: Vec::new(),
        nets: Vec::new(),
        channel: false,
        paused: true,
    }
}

pub(crate) fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
