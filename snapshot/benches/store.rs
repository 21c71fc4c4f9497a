//! What the store costs, on a memory-only machine of 512 MiB whose pages look like those of a Linux guest.
//!
//! Prints a table and writes `target/bench/snapshot.json`: rows `{name, unit, p50, p99, n}`.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a measurement that fails has nothing to save"
)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{Gfn, Machine, MemoryLayout, MemoryView, PAGE_SIZE, Page, PageContent};
use retrovisor_machine::memory::MemoryMachine;
use retrovisor_snapshot::{
    Access, CheckpointReport, CheckpointRequest, Recorder, RollbackRequest, Store, image_hash,
};

const PAGES: u64 = 131_072;
const DIRTY: u64 = 1_000;
const ROUNDS: usize = 150;

fn main() {
    // `cargo test --benches` builds and starts this, too.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mut table = Table::default();
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    let layout = MemoryLayout::flat(PAGES * PAGE_SIZE as u64).unwrap();
    let mut machine = MemoryMachine::new("bench", layout.clone()).unwrap();
    let mut guest = Guest(1);
    for index in 0..PAGES {
        // Four fifths of a booted guest are zero.
        if guest.below(5) == 0 {
            machine.poke(Gfn(index).gpa(), &guest.page()).unwrap();
        }
    }
    machine.device_mut().extend((0..80).flat_map(|_| guest.page()));
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let plain = CheckpointRequest::default();

    let first = recorder.checkpoint(&mut machine, &plain).unwrap();
    table.one("capture.first.pause_ms/512MiB", "ms", first.timing.pause_us as f64 / 1e3);
    table.one("capture.first.precopy_ms/512MiB", "ms", first.timing.precopy_us as f64 / 1e3);
    table.one("capture.first.durable_ms/512MiB", "ms", first.timing.durable_us as f64 / 1e3);
    table.one("capture.first.stored_bytes/512MiB", "B", first.record.stored_bytes as f64);

    for (variant, new_in_three) in [("all-new", 3), ("guest-like", 1)] {
        let size = store.size().unwrap();
        let mut reports = Vec::new();
        for _ in 0..ROUNDS {
            guest.touch(&mut machine, new_in_three);
            reports.push(recorder.checkpoint(&mut machine, &plain).unwrap());
        }
        let grown = (store.size().unwrap() - size) as f64 / ROUNDS as f64;
        captures(&mut table, variant, &reports);
        table.one(&format!("store.bytes_a_checkpoint/{DIRTY}/{variant}"), "B", grown);
    }

    let keyframes = store.catalogue().query("SELECT max(length(map)) FROM keyframe", &[], 1).unwrap();
    table.one("store.keyframe_bytes/512MiB", "B", keyframes.rows[0][0].as_f64().unwrap());

    going_back(&mut table, &store, &mut recorder, &mut machine, &mut guest);
    reading(&mut table, &store, &dir, &layout, &mut machine);
    table.finish();
}

fn captures(table: &mut Table, variant: &str, reports: &[CheckpointReport]) {
    let mut add = |name: &str, of: &dyn Fn(&CheckpointReport) -> u64| {
        let values = reports.iter().map(|report| of(report) as f64).collect();
        table.add(&format!("{name}/{DIRTY}/{variant}"), name.rsplit('_').next().unwrap(), values);
    };
    add("capture.pause_us", &|r| r.timing.pause_us);
    add("capture.copy_us", &|r| r.timing.copy_us);
    add("capture.hash_us", &|r| r.timing.hash_us);
    add("capture.dedupe_us", &|r| r.timing.dedupe_us);
    add("capture.compress_us", &|r| r.timing.compress_us);
    add("capture.write_us", &|r| r.timing.write_us);
    add("capture.sync_us", &|r| r.timing.sync_us);
    add("capture.commit_us", &|r| r.timing.commit_us);
    add("capture.durable_us", &|r| r.timing.durable_us);
    add("capture.stored_bytes", &|r| r.record.stored_bytes);
    add("capture.new_pages", &|r| r.record.new_pages);
}

/// Rollbacks in place, to the last checkpoints and to far ones, the guest having written since.
fn going_back(
    table: &mut Table,
    store: &Arc<Store>,
    recorder: &mut Recorder,
    machine: &mut MemoryMachine,
    guest: &mut Guest,
) {
    let id = store.catalogue().machine("bench").unwrap().id;
    let far = store.catalogue().resolve(id, "@2").unwrap();
    for (variant, steps) in [("3-back", "-3"), ("far", "")] {
        let mut reports = Vec::new();
        for _ in 0..30 {
            for _ in 0..3 {
                guest.touch(machine, 1);
                recorder.checkpoint(machine, &CheckpointRequest::default()).unwrap();
            }
            guest.touch(machine, 1);
            let target =
                if steps.is_empty() { far.id } else { store.catalogue().resolve(id, steps).unwrap().id };
            reports.push(recorder.rollback(machine, target, &RollbackRequest::default()).unwrap());
        }
        let mut add = |name: &str, unit: &str, of: &dyn Fn(&retrovisor_snapshot::RollbackReport) -> u64| {
            table.add(&format!("{name}/{variant}"), unit, reports.iter().map(|r| of(r) as f64).collect());
        };
        add("rollback.total_us", "us", &|r| r.timing.rollback_us);
        add("rollback.prefetch_us", "us", &|r| r.timing.prefetch_us);
        add("rollback.precopy_us", "us", &|r| r.timing.precopy_us);
        add("rollback.copy_us", "us", &|r| r.timing.copy_us);
        add("rollback.durable_us", "us", &|r| r.timing.durable_us);
        add("rollback.write_us", "us", &|r| r.timing.write_us);
        add("rollback.note_us", "us", &|r| r.timing.note_us);
        add("rollback.pages", "pages", &|r| r.pages_written);
    }
}

/// Restores into new machines, and what readers pay.
fn reading(
    table: &mut Table,
    store: &Arc<Store>,
    dir: &tempfile::TempDir,
    layout: &MemoryLayout,
    machine: &mut MemoryMachine,
) {
    let id = store.catalogue().machine("bench").unwrap().id;
    let newest =
        store.catalogue().checkpoint(store.catalogue().present(id).unwrap().unwrap().checkpoint).unwrap();
    let mut view_us = Vec::new();
    let mut cold_page_us = Vec::new();
    let mut page = [0; PAGE_SIZE];
    for at in 0..20 {
        let cold = Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap());
        view_us.push(time(|| drop(cold.view(newest.id).unwrap())).1);
        let view = cold.view(newest.id).unwrap();
        let used: Vec<Gfn> = layout.gfns().filter(|gfn| !view.known_zero(*gfn)).collect();
        for step in 0..20 {
            let gfn = used[(at * 7919 + step * 104_729) % used.len()];
            cold_page_us.push(time(|| view.read_page(gfn, &mut page).unwrap()).1);
        }
    }
    table.add("view.open_us/cold", "us", view_us);
    table.add("view.read_page_us/cold", "us", cold_page_us);

    let catalogue = store.catalogue();
    let all = catalogue.checkpoints(id).unwrap();
    let history = (0..20).map(|at| time(|| drop(catalogue.page_history(id, Gfn(at * 311)).unwrap())).1 / 1e3);
    table.add(&format!("store.page_history_ms/{}-checkpoints", all.len()), "ms", history.collect());
    let cold = Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap());
    let differ = (0..20)
        .map(|at| time(|| drop(cold.changed(all[at].id, all[all.len() - 1 - at].id).unwrap())).1 / 1e3);
    table.add("store.diff_ms", "ms", differ.collect());

    let mut restore_ms = Vec::new();
    let mut verify_mbps = Vec::new();
    for _ in 0..3 {
        // A new process, which finds the store on the disk (and in the host's page cache).
        let cold = Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap());
        let hash = image_hash(&cold.view(newest.id).unwrap()).unwrap();
        drop(cold);
        let cold = Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap());
        let start = Instant::now();
        assert_eq!(cold.image_hash(newest.id).unwrap(), hash);
        restore_ms.push(start.elapsed().as_secs_f64() * 1e3);
        let (report, us) = time(|| cold.verify(&mut |_| ()).unwrap());
        assert!(report.damaged.is_empty());
        verify_mbps.push(report.pages_checked as f64 * PAGE_SIZE as f64 / us);
    }
    table.add("store.image_hash_ms/512MiB-cold", "ms", restore_ms);
    table.add("store.verify_MBps", "MB/s", verify_mbps);

    let mut restore_ms = Vec::new();
    for round in 0..6 {
        // Memory as a new process has it.
        machine.pause().unwrap();
        for gfn in layout.gfns() {
            machine.write_page(gfn, PageContent::Zero).unwrap();
        }
        let target = if round % 2 == 0 { newest.id } else { all[1].id };
        let hash = store.image_hash(target).unwrap();
        let mut recorder = Recorder::new(Arc::clone(store), id).unwrap();
        let (report, us) = time(|| recorder.restore(machine, target, &RollbackRequest::default()));
        report.unwrap();
        restore_ms.push(us / 1e3);
        assert_eq!(image_hash(machine.memory()).unwrap(), hash);
    }
    table.add("restore.new_machine_ms/512MiB", "ms", restore_ms);
}

fn time<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let answer = work();
    (answer, start.elapsed().as_secs_f64() * 1e6)
}

/// Makes pages like those of a Linux guest: text, pointers, code, counters, half-empty pages, a little noise.
struct Guest(u64);

impl Guest {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn page(&mut self) -> Page {
        const WORDS: [&[u8]; 8] = [
            b"kernel ",
            b"systemd ",
            b"/usr/lib/x86_64-linux-gnu/",
            b"error: ",
            b"0x",
            b"task_struct ",
            b"\n",
            b"the ",
        ];
        let mut page = [0; PAGE_SIZE];
        let kind = self.below(10);
        let used =
            if self.below(3) == 0 { usize::try_from(self.below(3_000) + 64).unwrap() } else { PAGE_SIZE };
        let mut at = 0;
        while at + 32 <= used {
            let mut bytes = [0; 32];
            let length = match kind {
                // Text.
                0 | 1 => {
                    let word = WORDS[usize::try_from(self.below(8)).unwrap()];
                    bytes[..word.len()].copy_from_slice(word);
                    word.len()
                }
                // Structures: pointers into one area, small numbers, nulls.
                2..=5 => {
                    let pointer = 0xffff_8880_0000_0000 | (self.next() & 0x03ff_ffc0);
                    bytes[..8].copy_from_slice(&pointer.to_le_bytes());
                    bytes[8..12].copy_from_slice(&u32::try_from(self.below(300)).unwrap().to_le_bytes());
                    24
                }
                // Code: few distinct bytes, short repetitions.
                6..=8 => {
                    let code = self.next();
                    for (byte, shift) in bytes.iter_mut().zip(0..7) {
                        *byte = [0x48, 0x89, 0xe5, 0x0f, 0x8b, 0x00, 0xe8, 0x24]
                            [usize::try_from(code >> (shift * 3) & 7).unwrap()];
                    }
                    bytes[7] = code.to_le_bytes()[6];
                    8
                }
                // Compressed or random already.
                _ => {
                    for chunk in bytes.chunks_exact_mut(8) {
                        chunk.copy_from_slice(&self.next().to_le_bytes());
                    }
                    32
                }
            };
            page[at..at + length].copy_from_slice(&bytes[..length]);
            at += length;
        }
        page
    }

    /// Writes scattered pages: `new_in_three` thirds of them with contents never seen, the others with contents that
    /// are somewhere already (two thirds of what a Linux guest dirtied in shell work were).
    fn touch(&mut self, machine: &mut MemoryMachine, new_in_three: u64) {
        for _ in 0..DIRTY {
            let gpa = Gfn(self.below(PAGES)).gpa();
            let mut page = [0; PAGE_SIZE];
            if self.below(3) < new_in_three {
                page = self.page();
                // However alike two pages are: this one is new.
                let unique = self.next();
                page[..8].copy_from_slice(&unique.to_le_bytes());
            } else {
                let from = Gfn(self.below(PAGES));
                machine.memory().read_page(from, &mut page).unwrap();
            }
            machine.poke(gpa, &page).unwrap();
        }
    }
}

/// The rows.
#[derive(Default)]
struct Table(Vec<(String, String, f64, f64, usize)>);

impl Table {
    fn add(&mut self, name: &str, unit: &str, mut values: Vec<f64>) {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let at = |part: usize| values[(n * part / 100).min(n - 1)];
        println!("{name:<48} {unit:>6} {:>14.1} {:>14.1} {n:>6}", at(50), at(99));
        self.0.push((name.to_owned(), unit.to_owned(), at(50), at(99), n));
    }

    fn one(&mut self, name: &str, unit: &str, value: f64) {
        self.add(name, unit, vec![value]);
    }

    fn finish(self) {
        let mut json = String::from("[\n");
        for (at, (name, unit, p50, p99, n)) in self.0.iter().enumerate() {
            let comma = if at + 1 < self.0.len() { "," } else { "" };
            let _ = writeln!(
                json,
                r#"  {{"name": "{name}", "unit": "{unit}", "p50": {p50}, "p99": {p99}, "n": {n}}}{comma}"#
            );
        }
        json.push_str("]\n");
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
        let dir = target.join("bench");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("snapshot.json"), json).unwrap();
    }
}
