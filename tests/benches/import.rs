//! The pause of a machine beside an import of 10 GiB into the same store, and without it.
//!
//! `make bench` runs it; `IMPORT_MIB` is the length of the imported file. Rows go to `target/bench/import.json`.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_guest::Machine as _;
use retrovisor_machine::qemu::QemuMachine;
use retrovisor_snapshot::{Access, CheckpointRequest, DumpFormat, Recorder, Store};
use retrovisor_tests::{GuestImage, Measured, launch_config, wait_until};

const INTERVAL: Duration = Duration::from_millis(300);
/// Checkpoints before the import, and as many after it.
const ALONE: usize = 50;
/// Pages written at a time.
const BATCH: usize = 256;

fn main() {
    let Some(image) = GuestImage::find() else { return };
    let mib = std::env::var("IMPORT_MIB").map_or(10 << 10, |text| text.parse().expect("a number of MiB"));
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("memory.raw");
    write_dump(&dump, mib);
    let store = Arc::new(Store::open(&dir.path().join("store"), Access::Create).unwrap());
    let runtime = dir.path().join("machine");
    let mut machine = QemuMachine::launch(&launch_config(&image, "bench", &runtime, false)).unwrap();
    let log = machine.console_log().unwrap();
    wait_until("the guest's third tick line", Duration::from_mins(1), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.matches("tick ").count() >= 3)
    });
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let mut measured = Measured::default();
    // The first one copies all memory.
    let _first = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
    let mut checkpoint = |beside: &str, measured: &mut Measured| {
        std::thread::sleep(INTERVAL);
        let timing = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().timing;
        measured.add_us(&format!("pause_ms/{beside}"), timing.pause_us);
        measured.add_us(&format!("durable_ms/{beside}"), timing.durable_us);
    };
    for _ in 0..ALONE {
        checkpoint("alone", &mut measured);
    }
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let import = scope.spawn(|| {
            store.import_dump("imported", &dump, DumpFormat::Raw, &mut |_| ControlFlow::Continue(())).unwrap()
        });
        while !import.is_finished() {
            checkpoint("import", &mut measured);
        }
        let report = import.join().unwrap();
        println!("imported {mib} MiB, {} contents, in {:.0?}", report.new_contents, begun.elapsed());
    });
    for _ in 0..ALONE {
        checkpoint("alone", &mut measured);
    }
    measured.finish("import").unwrap();
}

/// A file of pages that are all different; half of each is zero.
fn write_dump(path: &Path, mib: usize) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut number = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pages = vec![[0_u8; 4096]; BATCH];
    for _ in 0..mib {
        for page in &mut pages {
            for word in page[..2048].as_chunks_mut::<8>().0 {
                // xorshift64
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                *word = number.to_le_bytes();
            }
        }
        file.write_all(pages.as_flattened()).unwrap();
    }
    file.flush().unwrap();
}
