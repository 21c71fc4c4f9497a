//! How long the guest stands still for a checkpoint while it goes on writing the same pages.

use retrovisor_snapshot::{CheckpointReport, RecorderSettings};
use retrovisor_tests::Measured;

use super::lab::{Lab, Order};

pub(crate) fn measure(lab: &mut Lab, measured: &mut Measured) {
    for (variant, precopy_pages_min) in [("", u64::MAX), ("/precopy", 0)] {
        lab.record_with(RecorderSettings { precopy_pages_min, ..RecorderSettings::default() });
        for (pages, checkpoints) in [(100, 100), (1_000, 60), (10_000, 20), (100_000, 5)] {
            for order in Order::BOTH {
                lab.go_on(&Lab::writing(pages, order));
                lab.checkpoint();
                let reports: Vec<_> = (0..checkpoints)
                    .map(|_| {
                        // The one that is going on, and a whole one.
                        lab.wait_rounds(2);
                        lab.checkpoint()
                    })
                    .collect();
                lab.rest();
                rows(measured, "kvm", &format!("{pages}/{}{variant}", order.name()), &reports);
            }
        }
    }
}

/// The same with room for so many pages: what does not fit waits for the disk.
pub(crate) fn measure_roomy(lab: &mut Lab, measured: &mut Measured) {
    lab.record_with(RecorderSettings { staging_bytes_max: 1 << 30, ..RecorderSettings::default() });
    lab.go_on(&Lab::writing(100_000, Order::Strided));
    lab.checkpoint();
    let mut reports = Vec::new();
    for _ in 0..5 {
        // So that the one before is on the disk.
        lab.recorder.drain(&mut lab.machine);
        lab.wait_rounds(2);
        reports.push(lab.checkpoint());
    }
    lab.rest();
    rows(measured, "kvm", "100000/strided/roomy", &reports);
}

pub(super) fn rows(measured: &mut Measured, driver: &str, case: &str, reports: &[CheckpointReport]) {
    for CheckpointReport { timing, record } in reports {
        let mut add = |name: &str, unit, value: u64| {
            measured.add(&format!("{driver}.pause{name}/{case}"), unit, value as f64);
        };
        add("_us", "us", timing.pause_us);
        add(".stop_us", "us", timing.stop_us);
        add(".find_us", "us", timing.find_us);
        add(".copy_us", "us", timing.copy_us);
        add(".audit_us", "us", timing.audit_us);
        add(".state_us", "us", timing.state_us);
        add(".resume_us", "us", timing.resume_us);
        add(".copied_pages", "pages", timing.copied_pages);
        add(".dirty_pages", "pages", record.dirty_pages);
        measured.add(&format!("{driver}.durable_ms/{case}"), "ms", timing.durable_us as f64 / 1e3);
        measured.add(&format!("{driver}.compare_us/{case}"), "us", timing.compare_us as f64);
    }
}
