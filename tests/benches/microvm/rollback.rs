//! Going back in place to the checkpoint before, and the guest's same work before and after.

use retrovisor_snapshot::{CurrentPolicy, RecorderSettings, RollbackReport, RollbackRequest};
use retrovisor_tests::Measured;

use super::lab::{Lab, Order, us};

pub(crate) fn measure(lab: &mut Lab, measured: &mut Measured) {
    lab.record_with(RecorderSettings::default());
    let request = RollbackRequest { current: CurrentPolicy::Staged, ..RollbackRequest::default() };
    let mut cases = vec![("0".to_owned(), Lab::writing(0, Order::Sequential), 60)];
    for (pages, turns) in [(100, 60), (1_000, 40), (10_000, 15), (100_000, 3)] {
        cases.extend(
            Order::BOTH.map(|order| (format!("{pages}/{}", order.name()), Lab::writing(pages, order), turns)),
        );
    }
    // The guest writes a word a page; here into each of a page's 64 lines, so that nothing of it is spared.
    cases.push(("1000/every-line".to_owned(), Lab::writing_lines(1_000), 10));
    for (case, writing, turns) in cases {
        // So that the pages differ from zero, and are known.
        lab.work(&writing, 1);
        for _ in 0..turns {
            let target = lab.checkpoint().record.id;
            if writing.pages > 0 {
                let before = lab.work(&writing, 1);
                measured.add(&format!("kvm.work_us/{case}"), "us", us(before));
            }
            let report = lab.recorder.rollback(&mut lab.machine, target, &request).unwrap();
            rows(measured, &case, &report);
            if writing.pages > 0 {
                let after = lab.work(&writing, 1);
                measured.add(&format!("kvm.work_after_rollback_us/{case}"), "us", us(after));
            }
        }
    }
    for pages in [1_000, 10_000] {
        for order in Order::BOTH {
            let case = format!("{pages}/{}", order.name());
            let after = measured.p50(&format!("kvm.work_after_rollback_us/{case}"));
            let ratio = after / measured.p50(&format!("kvm.work_us/{case}"));
            measured.add(&format!("kvm.work_after_rollback/{case}"), "times", ratio);
        }
    }
}

fn rows(measured: &mut Measured, case: &str, report: &RollbackReport) {
    let timing = &report.timing;
    let mut add = |name: &str, unit, value: u64| {
        measured.add(&format!("kvm.rollback{name}/{case}"), unit, value as f64);
    };
    add("_us", "us", timing.rollback_us);
    // Before it, with the guest running.
    add(".ready_us", "us", timing.precopy_us + timing.prefetch_us);
    add(".stop_us", "us", timing.stop_us);
    add(".find_us", "us", timing.find_us);
    add(".copy_us", "us", timing.copy_us);
    add(".state_us", "us", timing.state_us);
    add(".write_us", "us", timing.write_us);
    add(".apply_us", "us", timing.apply_us);
    add(".resume_us", "us", timing.resume_us);
    add(".pages", "pages", report.pages_written);
}
