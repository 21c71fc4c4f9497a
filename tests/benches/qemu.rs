//! The `qemu` driver on a 512-MiB guest under load, beside QEMU's own snapshots of the same guest.
//!
//! `make bench` runs it. Rows go to `target/bench/qemu.json`.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![expect(clippy::cast_precision_loss, reason = "counts of a benchmark fit in 52 bits")]

mod peer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_analytics::{Config, Evaluator, Sample};
use retrovisor_guest::Machine as _;
use retrovisor_introspect::Introspector;
use retrovisor_machine::qemu::QemuMachine;
use retrovisor_snapshot::{Access, CheckpointRequest, Recorder, RollbackRequest, Store};
use retrovisor_tests::{GuestImage, Measured, launch_config, wait_until};

/// The workload dirties about 1,000 pages in this time.
const INTERVAL: Duration = Duration::from_secs(1);
const CHECKPOINTS: usize = 40;
const ROLLBACKS: usize = 15;
const NEW_PROCESSES: usize = 8;

fn main() {
    let Some(image) = GuestImage::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut measured = Measured::default();
    ours(&image, dir.path(), &mut measured);
    peer::measure(&image, dir.path(), &mut measured);
    measured.finish("qemu").unwrap();
    println!();
    let ratio = |theirs: &str, ours: &str| measured.p50(theirs) / measured.p50(ours);
    println!(
        "pause:          {:>6.1} × shorter than QEMU's own snapshot-save (goal ≥ 10)",
        ratio("peer.save_ms", "qemu.pause_ms")
    );
    println!(
        "rollback:       {:>6.1} × shorter than QEMU's own snapshot-load",
        ratio("peer.load_ms", "qemu.rollback_ms/in-place")
    );
    println!("bytes a point:  {:>6.1} × fewer (goal ≥ 50)", ratio("peer.stored_bytes", "qemu.stored_bytes"));
    println!("goals: pause ≤ 15 ms, rollback in place ≤ 30 ms (p50)");
}

fn ours(image: &GuestImage, dir: &std::path::Path, measured: &mut Measured) {
    let store = Arc::new(Store::open(&dir.join("store"), Access::Create).unwrap());
    let runtime = dir.join("machine");
    let mut machine = QemuMachine::launch(&launch_config(image, "bench", &runtime, false)).unwrap();
    println!("guest under {}; dirty pages by {}", machine.identity().accelerator, machine.finder().0);
    let log = machine.console_log().unwrap();
    wait_until("the guest's third tick line", Duration::from_mins(1), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.matches("tick ").count() >= 3)
    });
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let mut introspector = Introspector::new();
    let mut analyst = Evaluator::new(Config::default());
    let mut last: Option<Sample> = None;
    for turn in 0..=CHECKPOINTS {
        let report = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
        let resumed = Instant::now();
        let (record, timing) = (report.record, report.timing);
        let view = store.view(record.id).unwrap();
        let registers = store.registers(record.id).unwrap();
        let began = Instant::now();
        let observation = introspector.observe(&view, &registers);
        let tables = observation.tables();
        measured.add_us(if turn == 0 { "introspect.first_ms" } else { "introspect.next_ms" }, us(began));
        let sample = Sample::from_tables(&record, &tables);
        let began = Instant::now();
        let judgement = analyst.evaluate(&sample, last.as_ref());
        measured.add_us("score_ms", us(began));
        store.catalogue().record_facts(record.id, &tables).unwrap();
        store.catalogue().set_verdict(record.id, &judgement.record()).unwrap();
        last = Some(sample);
        // The first one copies all memory: it is not what the guest feels afterwards.
        if turn > 0 {
            measured.add("qemu.dirty_pages", "pages", record.dirty_pages as f64);
            measured.add_us("qemu.pause_ms", timing.pause_us);
            measured.add_us("qemu.pause_ms/stop", timing.stop_us);
            measured.add_us("qemu.pause_ms/find", timing.find_us);
            measured.add_us("qemu.pause_ms/copy", timing.copy_us);
            measured.add_us("qemu.pause_ms/state", timing.state_us);
            measured.add_us("qemu.pause_ms/cont", timing.resume_us);
            measured.add("qemu.pause.audit_us", "us", timing.audit_us as f64);
            measured.add("qemu.compare_us", "us", timing.compare_us as f64);
            measured.add_us("qemu.durable_ms", timing.durable_us);
            measured.add("qemu.stored_bytes", "bytes", record.stored_bytes as f64);
        }
        std::thread::sleep(INTERVAL.saturating_sub(resumed.elapsed()));
    }
    for turn in 0..ROLLBACKS {
        let line = store.catalogue().ancestry(recorder.position().unwrap().checkpoint).unwrap();
        let target = line[turn % 4].id;
        let report = recorder.rollback(&mut machine, target, &RollbackRequest::default()).unwrap();
        measured.add_us("qemu.rollback_ms/in-place", report.timing.rollback_us);
        measured.add("qemu.rollback_pages", "pages", report.pages_written as f64);
        std::thread::sleep(INTERVAL);
        recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
    }
    let newest = recorder.position().unwrap().checkpoint;
    machine.quit();
    for _ in 0..NEW_PROCESSES {
        let began = Instant::now();
        let mut machine = QemuMachine::launch(&launch_config(image, "bench", &runtime, true)).unwrap();
        let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
        recorder.restore(&mut machine, newest, &RollbackRequest::default()).unwrap();
        machine.resume().unwrap();
        measured.add_us("qemu.rollback_ms/new-process", us(began));
        machine.quit();
    }
}

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
