//! The machine, its store and its recorder.

use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{Gfn, Machine, MemoryIo as _, MemoryLayout, PAGE_SIZE, Page};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{Access, CheckpointRequest, MachineId, Recorder, RecorderSettings, Store};

use crate::guest::Guest;
use crate::table::Table;

pub(crate) const PAGES: u64 = 1 << 18;
/// Pages of a frame, and the compression level, as in the store.
const FRAME_BYTES: usize = 4 * PAGE_SIZE;
const LEVEL: i32 = 1;

pub(crate) struct Lab {
    _dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) id: MachineId,
    pub(crate) machine: MemoryMachine,
    pub(crate) recorder: Recorder,
    pub(crate) guest: Guest,
    /// Pages whose contents are stored.
    known: Vec<Gfn>,
    /// Pages generated beforehand: generating them would take longer than storing them.
    stock: Vec<Page>,
}

impl Lab {
    /// A machine with a first checkpoint.
    pub(crate) fn new(table: &mut Table) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
        let layout = MemoryLayout::flat(PAGES * PAGE_SIZE as u64).unwrap();
        let mut machine = MemoryMachine::new("bench", layout).unwrap();
        let mut guest = Guest::new(1);
        let (mut known, mut sample) = (Vec::new(), Vec::new());
        for index in 0..PAGES {
            if guest.below(100) < 35 {
                let page = guest.page();
                machine.poke(Gfn(index).gpa(), &page).unwrap();
                known.push(Gfn(index));
                if sample.len() < 4_000 {
                    sample.push(page);
                }
            }
        }
        machine.device_mut().extend((0..4).flat_map(|_| guest.page()));
        let (bytes, _) = zstd_alone(&sample);
        table.one("guest.zstd_ratio", "", (sample.len() * PAGE_SIZE) as f64 / bytes as f64);
        let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
        let recorder = Recorder::new(Arc::clone(&store), id).unwrap();
        let mut lab = Self { _dir: dir, store, id, machine, recorder, guest, known, stock: sample };
        let first = lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap();
        table.one("capture.first.pause_us/1GiB", "us", first.timing.pause_us as f64);
        table.one("capture.first.durable_ms/1GiB", "ms", first.timing.durable_us as f64 / 1e3);
        table.one("store.bytes.first/1GiB", "B", first.record.stored_bytes as f64);
        lab
    }

    /// Another recorder, which has recorded the machine once.
    pub(crate) fn record_with(&mut self, settings: RecorderSettings) {
        self.recorder.drain(&mut self.machine);
        self.recorder = Recorder::with_settings(Arc::clone(&self.store), self.id, settings).unwrap();
        self.recorder.checkpoint(&mut self.machine, &CheckpointRequest::default()).unwrap();
    }

    /// The guest writes consecutive pages, or each `stride`th: a third of them with new contents, which are returned.
    pub(crate) fn touch(&mut self, count: u64, stride: u64, all_new: bool) -> Vec<Page> {
        let first = self.guest.below(PAGES);
        let mut new = Vec::new();
        for at in 0..count {
            let gfn = Gfn((first + at * stride) % PAGES);
            let mut page = [0; PAGE_SIZE];
            if all_new || self.guest.below(3) == 0 {
                // Similar to a prepared page, but new.
                page = self.stock[self.guest.below(self.stock.len() as u64) as usize];
                for at in (0..PAGE_SIZE).step_by(256) {
                    page[at..at + 8].copy_from_slice(&self.guest.next().to_le_bytes());
                }
                new.push(page);
            } else {
                let from = self.known[self.guest.below(self.known.len() as u64) as usize];
                self.machine.memory().read_page(from, &mut page).unwrap();
            }
            self.machine.poke(gfn.gpa(), &page).unwrap();
        }
        new
    }

    pub(crate) fn memory(&self, table: &mut Table) {
        let used = self.recorder.memory_use();
        table.one("memory.staging_peak_MiB", "MiB", used.staging_bytes_peak as f64 / 1_048_576.0);
        table.one("memory.staging_budget_MiB", "MiB", used.staging_bytes_max as f64 / 1_048_576.0);
        table.one("memory.page_cache_MiB", "MiB", used.page_cache_bytes as f64 / 1_048_576.0);
        table.one("memory.page_cache_budget_MiB", "MiB", used.page_cache_bytes_max as f64 / 1_048_576.0);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
        table.one("memory.peak_rss_MiB/with-1GiB-guest", "MiB", kib.unwrap_or(f64::NAN) / 1024.0);
    }
}

/// Bytes and microseconds of only compressing pages as the store does, on two cores.
pub(crate) fn zstd_alone(pages: &[Page]) -> (usize, f64) {
    let bytes: Vec<u8> = pages.iter().flatten().copied().collect();
    let half = (bytes.len() / 2).next_multiple_of(FRAME_BYTES).min(bytes.len());
    let start = Instant::now();
    let total = std::thread::scope(|scope| {
        let halves = [&bytes[..half], &bytes[half..]].map(|half| {
            scope.spawn(move || {
                let mut compressor = zstd::bulk::Compressor::new(LEVEL).unwrap();
                let mut room = vec![0; FRAME_BYTES * 2];
                half.chunks(FRAME_BYTES)
                    .map(|frame| {
                        compressor.compress_to_buffer(frame, &mut room[..]).unwrap().min(frame.len())
                    })
                    .sum::<usize>()
            })
        });
        halves.map(|half| half.join().unwrap()).iter().sum()
    });
    (total, start.elapsed().as_secs_f64() * 1e6)
}
