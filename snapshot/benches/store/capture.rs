//! The pause and the time until durable, by the number of dirty pages and their placement, with and without pre-copy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use retrovisor_guest::{Gfn, PAGE_SIZE};
use retrovisor_snapshot::{CheckpointReport, CheckpointRequest, RecorderSettings};

use crate::guest::Guest;
use crate::lab::{Lab, PAGES, zstd_alone};
use crate::table::Table;

const SIZES: [(u64, usize); 4] = [(100, 60), (1_000, 60), (10_000, 16), (100_000, 3)];
/// `AlignedPage` for 100,000 pages in the pause.
const STAGING: u64 = 640 << 20;

pub(crate) fn measure(lab: &mut Lab, table: &mut Table) {
    let never = RecorderSettings {
        precopy_pages_min: u64::MAX,
        staging_bytes_max: STAGING,
        ..RecorderSettings::default()
    };
    lab.record_with(never);
    for (pages, rounds) in SIZES {
        for (variant, stride) in [("sequential", 1), ("strided", 2)] {
            plain(lab, table, pages, rounds, stride, variant);
        }
    }
    all_new(lab, table);
    lab.record_with(RecorderSettings::default());
    for (pages, rounds) in SIZES {
        // Below this number of pages nothing is copied before the pause.
        if pages >= RecorderSettings::default().precopy_pages_min {
            precopied(lab, table, pages, rounds);
        }
    }
    crossover(lab, table);
}

fn plain(lab: &mut Lab, table: &mut Table, pages: u64, rounds: usize, stride: u64, variant: &str) {
    let (mut reports, mut share, mut zstd_ms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let new = lab.touch(pages, stride, false);
        let report = lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap();
        let took_us = zstd_alone(&new).1;
        zstd_ms.push(took_us / 1e3);
        share.push(took_us / report.timing.durable_us as f64 * 100.0);
        reports.push(report);
    }
    reports.remove(0);
    rows(table, &format!("{pages}/{variant}"), &reports);
    table.add(&format!("capture.zstd_alone_ms/{pages}/{variant}"), "ms", zstd_ms);
    table.add(&format!("capture.durable_of_zstd/{pages}/{variant}"), "%", share);
}

/// No written contents are known: compression is most of the work.
fn all_new(lab: &mut Lab, table: &mut Table) {
    for (pages, rounds) in [(10_000, 4), (50_000, 2)] {
        let (mut durable, mut share) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let new = lab.touch(pages, 2, true);
            let report = lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap();
            let took_us = zstd_alone(&new).1;
            durable.push(report.timing.durable_us as f64 / 1e3);
            share.push(took_us / report.timing.durable_us as f64 * 100.0);
        }
        table.add(&format!("capture.durable_ms/{pages}/all-new"), "ms", durable);
        table.add(&format!("capture.durable_of_zstd/{pages}/all-new"), "%", share);
    }
}

/// The first of the pages that the guest writes all the time.
const WORKING_SET_FIRST: u64 = PAGES / 2;

/// While the guest continues writing 1,000 pages in 10 ms: the same ones, as a guest's working set is.
fn precopied(lab: &mut Lab, table: &mut Table, pages: u64, rounds: usize) {
    let writer = lab.machine.writer();
    let done = AtomicBool::new(false);
    let mut reports = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut guest = Guest::new(77);
            while !done.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    let gpa = Gfn(WORKING_SET_FIRST + guest.below(1_000)).gpa();
                    writer.poke(gpa, &guest.next().to_le_bytes()).unwrap();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for _ in 0..rounds.max(6) {
            lab.touch(pages, 2, false);
            reports.push(lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap());
        }
        done.store(true, Ordering::Relaxed);
    });
    // The first capture has no estimate of the number of dirty pages yet.
    reports.remove(0);
    rows(table, &format!("{pages}/strided/precopy"), &reports);
    let precopy = reports.iter().map(|report| report.timing.precopy_us as f64 / 1e3).collect();
    table.add(&format!("capture.precopy_ms/{pages}/strided/precopy"), "ms", precopy);
}

/// The number of dirty pages from which on copying them before the pause pays off.
fn crossover(lab: &mut Lab, table: &mut Table) {
    for least in [0, u64::MAX] {
        lab.record_with(RecorderSettings { precopy_pages_min: least, ..RecorderSettings::default() });
        for pages in [250, 500, 1_000, 2_000, 4_000] {
            let pauses = (0..16).map(|_| {
                lab.touch(pages, 2, false);
                let report =
                    lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap();
                report.timing.pause_us as f64
            });
            let how = if least == 0 { "always" } else { "never" };
            table.add(&format!("capture.crossover.pause_us/{pages}/precopy-{how}"), "us", pauses.collect());
        }
    }
}

fn rows(table: &mut Table, variant: &str, reports: &[CheckpointReport]) {
    let mut add = |name: &str, unit: &str, of: &dyn Fn(&CheckpointReport) -> f64| {
        table.add(&format!("{name}/{variant}"), unit, reports.iter().map(of).collect());
    };
    add("capture.pause_us", "us", &|r| r.timing.pause_us as f64);
    add("capture.audit_us", "us", &|r| r.timing.audit_us as f64);
    add("capture.compare_us", "us", &|r| r.timing.compare_us as f64);
    add("capture.copied_pages", "pages", &|r| r.timing.copied_pages as f64);
    add("capture.pause_of_goal", "%", &|r| {
        r.timing.pause_us as f64 / (60.0 + 0.6 * r.timing.copied_pages as f64) * 100.0
    });
    add("capture.durable_ms", "ms", &|r| r.timing.durable_us as f64 / 1e3);
    add("capture.stored_MiB", "MiB", &|r| r.record.stored_bytes as f64 / (256 * PAGE_SIZE) as f64);
}
