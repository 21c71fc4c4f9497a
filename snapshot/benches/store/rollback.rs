//! Rollbacks in place to a recent checkpoint.

use retrovisor_snapshot::{
    CheckpointRequest, CurrentPolicy, RecorderSettings, RollbackReport, RollbackRequest,
};

use crate::lab::Lab;
use crate::table::Table;

pub(crate) fn measure(lab: &mut Lab, table: &mut Table) {
    lab.record_with(RecorderSettings::default());
    for (pages, rounds) in [(100, 30), (1_000, 30), (10_000, 10)] {
        for (variant, current) in [("hot", CurrentPolicy::Staged), ("durable", CurrentPolicy::Durable)] {
            let request = RollbackRequest { current, ..RollbackRequest::default() };
            let rounds = if variant == "hot" { rounds } else { rounds / 3 };
            let reports: Vec<RollbackReport> = (0..rounds)
                .map(|_| {
                    lab.touch(pages / 2, 3, false);
                    let target =
                        lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap();
                    lab.touch(pages / 2, 3, false);
                    lab.recorder.checkpoint(&mut lab.machine, &CheckpointRequest::default()).unwrap();
                    lab.touch(pages / 2, 3, false);
                    lab.recorder.rollback(&mut lab.machine, target.record.id, &request).unwrap()
                })
                .collect();
            rows(table, variant, pages, &reports);
        }
    }
}

fn rows(table: &mut Table, variant: &str, pages: u64, reports: &[RollbackReport]) {
    let mut add = |name: &str, unit: &str, of: &dyn Fn(&RollbackReport) -> f64| {
        table.add(&format!("rollback.{variant}{name}/{pages}"), unit, reports.iter().map(of).collect());
    };
    add("_us", "us", &|r| r.timing.rollback_us as f64);
    if variant == "hot" {
        add(".of_goal", "%", &|r| {
            r.timing.rollback_us as f64 / (40.0 + 0.7 * r.pages_written as f64) * 100.0
        });
        add(".stop_us", "us", &|r| r.timing.stop_us as f64);
        add(".find_us", "us", &|r| r.timing.find_us as f64);
        add(".state_us", "us", &|r| r.timing.state_us as f64);
        add(".apply_us", "us", &|r| r.timing.apply_us as f64);
        add(".copy_us", "us", &|r| r.timing.copy_us as f64);
        add(".write_us", "us", &|r| r.timing.write_us as f64);
    }
    add(".pages", "pages", &|r| r.pages_written as f64);
    add(".prefetch_us", "us", &|r| r.timing.prefetch_us as f64);
    add(".durable_ms", "ms", &|r| r.timing.durable_us as f64 / 1e3);
}
