//! Measures the cost of reading a guest, on a dump of a stock Debian guest of 512 MiB: the first observation; the next
//! one, after 1,000 of the frames that it reads have changed; finding the kernel, which is a part of the first; and the
//! owner of each frame. A raw dump has no page tokens: there everything that an observation needs is read again.
//! `cached`: an earlier process has put symbols and types of the build in a library.
//!
//! Prints a table and writes `target/bench/introspect.json`: rows `{name, unit, p50, p99, n}`.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]

#[allow(dead_code, reason = "the benchmark reads no statement")]
#[path = "../tests/guest_reports/dump.rs"]
mod dump;
#[path = "../tests/live/mod.rs"]
mod live;
#[allow(dead_code, reason = "the benchmark reads no statement")]
#[path = "../tests/guest_reports/statement.rs"]
mod statement;

use std::{cell::RefCell, collections::BTreeSet, fs, path::PathBuf, time::Instant};

use dump::Dump;
use live::Setting;
use retrovisor_guest::{Gfn, MemoryError, MemoryLayout, MemoryView, Page, PageToken, ZERO_PAGE, is_zero};
use retrovisor_introspect::{Introspector, Kernel, KernelLibrary, OwnerMap};

const ROUNDS: u64 = 20;
const NEXTS: u64 = 5;
const DIRTY: usize = 1000;

/// A memory whose frames have page tokens, as in a store.
struct Held {
    layout: MemoryLayout,
    pages: Vec<Page>,
    zero: Vec<bool>,
    /// Incremented for each checkpoint.
    generation: u64,
    /// Frames that change from each checkpoint to the next.
    dirty: BTreeSet<u64>,
    /// Frames that were read.
    read: RefCell<BTreeSet<u64>>,
}

impl Held {
    fn of(dump: &Dump) -> Self {
        let layout = dump.memory.layout().clone();
        let mut pages = vec![ZERO_PAGE; usize::try_from(layout.pages()).unwrap()];
        for (gfn, page) in layout.gfns().zip(&mut pages) {
            dump.memory.read_page(gfn, page).unwrap();
        }
        let zero = pages.iter().map(is_zero).collect();
        Self { layout, pages, zero, generation: 0, dirty: BTreeSet::new(), read: RefCell::default() }
    }
}

impl MemoryView for Held {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let page = usize::try_from(gfn.0).ok().and_then(|gfn| self.pages.get(gfn));
        *into = *page.ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        if self.generation == 0 {
            self.read.borrow_mut().insert(gfn.0);
        }
        Ok(())
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        let generation = if self.dirty.contains(&gfn.0) { self.generation } else { 0 };
        Some(PageToken(gfn.0 | generation << 40))
    }
    fn known_zero(&self, gfn: Gfn) -> bool {
        usize::try_from(gfn.0).is_ok_and(|gfn| self.zero.get(gfn) == Some(&true))
    }
}

fn main() {
    // `cargo test --benches` builds and starts this, too.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let setting =
        Setting { vcpus: 4, accelerator: "tcg,thread=single", append: "pti=off", ..Setting::default() };
    let Some(dump) = Dump::of("bookworm-cloud", "large", &setting) else { return };
    let mut view = Held::of(&dump);
    // Frames with data that an observation reads, evenly spread: the worst case of dirty frames.
    let mut introspector = Introspector::new();
    drop(introspector.observe(&view, &dump.registers));
    let read: Vec<u64> = view.read.borrow().iter().copied().collect();
    view.dirty = read.iter().step_by(read.len() / DIRTY).take(DIRTY).copied().collect();
    let ms = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e3
    };
    let (mut firsts, mut finds, mut nexts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        view.generation = 1;
        let mut introspector = Introspector::new();
        firsts.push(ms(&mut || drop(introspector.observe(&view, &dump.registers))));
        finds.push(ms(&mut || drop(Kernel::find(&view, &dump.registers))));
        for next in 0..NEXTS {
            view.generation = 2 + next;
            nexts.push(ms(&mut || drop(introspector.observe(&view, &dump.registers))));
        }
    }
    let (mut raw_firsts, mut raw_tasks, mut raw_nexts) = (Vec::new(), Vec::new(), Vec::new());
    // An earlier process has put symbols and types of this build in the library.
    let folder = tempfile::tempdir().unwrap();
    let library = KernelLibrary::new(folder.path());
    drop(Kernel::find_with(&view, &dump.registers, &library));
    let (mut kept_firsts, mut kept_finds, mut kept_tasks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        view.generation = 1;
        let mut introspector = Introspector::with_library(library.clone());
        kept_firsts.push(ms(&mut || drop(introspector.observe(&view, &dump.registers))));
        kept_finds.push(ms(&mut || drop(Kernel::find_with(&view, &dump.registers, &library))));
        kept_tasks.push(ms(&mut || {
            assert!(Kernel::find_tasks(&dump.memory, &dump.registers, &library).unwrap().len() > 10);
        }));
    }
    for _ in 0..ROUNDS {
        let mut introspector = Introspector::new();
        raw_firsts.push(ms(&mut || drop(introspector.observe(&dump.memory, &dump.registers))));
        raw_tasks.push(ms(&mut || {
            let kernel = Kernel::find(&dump.memory, &dump.registers).unwrap();
            assert!(kernel.tasks(&dump.memory).len() > 10);
        }));
        for _ in 0..NEXTS {
            raw_nexts.push(ms(&mut || drop(introspector.observe(&dump.memory, &dump.registers))));
        }
    }
    let mut introspector = Introspector::new();
    let observation = introspector.observe(&view, &dump.registers);
    let kernel = introspector.kernel().unwrap();
    let (mut maps, mut owners) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut map = None;
        maps.push(ms(&mut || map = Some(OwnerMap::build(&kernel, &view, &observation))));
        let map = map.unwrap();
        // A thousand frames at a time: the clock is too coarse for one.
        let gfns: Vec<Gfn> = view.layout.gfns().collect();
        for some in gfns.chunks_exact(1000) {
            let took = ms(&mut || {
                for gfn in some {
                    std::hint::black_box(map.explain(*gfn));
                }
            });
            owners.push(took * 1e6 / 1000.0);
        }
    }
    let rows = [
        ("introspect.first_ms/dump", "ms", firsts),
        ("introspect.first_ms/find", "ms", finds),
        ("introspect.first_ms/cached", "ms", kept_firsts),
        ("introspect.first_ms/find-cached", "ms", kept_finds),
        ("introspect.first_ms/raw", "ms", raw_firsts),
        ("introspect.tasks_ms/raw", "ms", raw_tasks),
        ("introspect.tasks_ms/cached", "ms", kept_tasks),
        ("introspect.next_ms/1000-dirty", "ms", nexts),
        ("introspect.next_ms/raw", "ms", raw_nexts),
        ("introspect.owner_map_ms", "ms", maps),
        ("introspect.owner_ns", "ns", owners),
    ];
    let mut json = Vec::new();
    for (name, unit, mut samples) in rows {
        samples.sort_by(f64::total_cmp);
        let (p50, p99) = (samples[samples.len() / 2], samples[samples.len() * 99 / 100]);
        println!("{name:<34} {p50:>10.2} {unit} p50 {p99:>10.2} {unit} p99 {:>5}", samples.len());
        json.push(
            serde_json::json!({ "name": name, "unit": unit, "p50": p50, "p99": p99, "n": samples.len() }),
        );
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("introspect.json"), serde_json::to_string_pretty(&json).unwrap()).unwrap();
}
