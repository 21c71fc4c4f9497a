//! Measures the capture and rollback engine, on a memory-only machine of 1 GiB whose pages resemble a real guest's; and
//! facts.
//!
//! Prints a table and writes `target/bench/snapshot.json`: rows `{name, unit, p50, p99, n}`.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measurement that fails has nothing to save"
)]

mod capture;
mod cold;
mod facts;
mod guest;
mod lab;
mod rate;
mod rollback;
mod table;

fn main() {
    // `cargo test --benches` builds and starts this, too.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let only = std::env::var("RETROVISOR_BENCH").ok();
    let wanted = |group: &str| only.as_deref().is_none_or(|only| only == group);
    let mut table = table::Table::default();
    if wanted("capture") || wanted("rate") || wanted("rollback") {
        let mut lab = lab::Lab::new(&mut table);
        if wanted("capture") {
            capture::measure(&mut lab, &mut table);
        }
        if wanted("rate") {
            rate::measure(&mut lab, &mut table);
        }
        if wanted("rollback") {
            rollback::measure(&mut lab, &mut table);
        }
        lab.memory(&mut table);
    }
    if wanted("cold") {
        cold::measure(&mut table);
    }
    if wanted("facts") {
        facts::measure(&mut table);
    }
    table.finish();
}
