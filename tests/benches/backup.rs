//! Compares the store with two backup programs that deduplicate: the same raw images of a running Linux guest, in
//! order.
//!
//! `make bench-backup` runs it. No program gets the changes between two images: each must find them itself, from the
//! same files in the page cache. (In service the store gets the list of changed pages, and reads nothing else.) Rows go
//! to `target/bench/backup.json`.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![expect(clippy::cast_precision_loss, reason = "counts of a benchmark fit in 52 bits")]

#[path = "backup/image.rs"]
mod image;
#[path = "backup/program.rs"]
mod program;
#[path = "backup/store.rs"]
mod store;

use std::path::{Path, PathBuf};
use std::time::Duration;

use program::Program;
use retrovisor_tests::{GuestImage, Measured};

const IMAGES: usize = 24;
const INTERVAL: Duration = Duration::from_secs(2);
const OURS: &str = "retrovisor";

/// A program that keeps images.
trait Archiver {
    /// As it stands in the rows.
    fn name(&self) -> &str;
    /// Keeps one image more; returns when it is durable.
    fn keep(&mut self, image: &Path);
    /// What it takes on the disk.
    fn stored_bytes(&self) -> u64;
}

fn main() {
    // `cargo test --benches` builds and starts this, too.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let Some(guest) = GuestImage::find() else { return };
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    std::fs::create_dir_all(&place).unwrap();
    let dir = tempfile::tempdir_in(place).unwrap();
    println!("taking {IMAGES} images of a guest under load, {} s apart …", INTERVAL.as_secs());
    let images = image::take(&guest, dir.path(), IMAGES, INTERVAL);

    let mut measured = Measured::default();
    let mut ours = store::Ours::create(&dir.path().join("store"));
    run(&mut ours, &images, &mut measured);
    ours.check(images.last().unwrap());
    let mut others = Vec::new();
    for mut program in Program::all(dir.path()) {
        run(&mut program, &images, &mut measured);
        others.push(program.name().to_owned());
    }
    measured.finish("backup").unwrap();
    println!();
    for other in &others {
        let ratio =
            |row: &str| measured.p50(&format!("{row}/{other}")) / measured.p50(&format!("{row}/{OURS}"));
        println!(
            "{other:<12} takes {:.2} × the bytes and {:.1} × the time",
            ratio("store.stored_mb"),
            ratio("store.total_s")
        );
    }
    println!("goals: smaller than all, at least 5 × faster than the fastest");
}

/// Keeps the whole series and adds its rows: the megabytes of images a second, how many times smaller they are kept.
fn run(archiver: &mut dyn Archiver, images: &[PathBuf], measured: &mut Measured) {
    let mut total = Duration::ZERO;
    let row = |what: &str, archiver: &dyn Archiver| format!("store.{what}/{}", archiver.name());
    let mut bytes = 0;
    for image in images {
        let length = std::fs::metadata(image).unwrap().len();
        let began = std::time::Instant::now();
        archiver.keep(image);
        let took = began.elapsed();
        total += took;
        bytes += length;
        measured.add(&row("write_mbps", archiver), "MB/s", length as f64 / 1e6 / took.as_secs_f64());
    }
    let stored = archiver.stored_bytes() as f64;
    measured.add(&row("total_s", archiver), "s", total.as_secs_f64());
    measured.add(&row("stored_mb", archiver), "MB", stored / 1e6);
    measured.add(&row("ratio", archiver), "×", bytes as f64 / stored);
}
