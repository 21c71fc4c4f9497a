//! Measures the cost of evaluating a checkpoint, on the synthetic guest of the tests.
//!
//! Prints a table and writes `target/bench/analytics.json`: rows `{name, unit, p50, p99, n}`.

#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use retrovisor_analytics::{explain, report};
use retrovisor_snapshot::Verdict;
use synthetic::Fault;
use synthetic::run::Run;
use synthetic::stored::StoredRun;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo test --benches` builds and starts this, too.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    let mut rows = Vec::new();
    let (mut young, mut grown) = (Vec::new(), Vec::new());
    for seed in 0..6 {
        let mut run = Run::new(seed);
        while run.evaluator.is_learning() {
            run.step();
        }
        for step in 0..260 {
            let begun = Instant::now();
            run.step();
            // The time to make the sample from its tables is included, as in the service.
            let took_ms = begun.elapsed().as_secs_f64() * 1e3;
            match step {
                0..40 => young.push(took_ms),
                200.. => grown.push(took_ms),
                _ => {}
            }
        }
    }
    rows.push(("score_ms", "ms", young));
    rows.push(("score_ms/baseline-200", "ms", grown));

    let (mut explained, mut remembered, mut reported) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 0..5 {
        let mut run = StoredRun::new(seed);
        run.learn();
        for _ in 0..20 {
            run.step();
        }
        run.guest.inject(Fault::RUNAWAY, "runaway");
        let alarm = loop {
            let evaluation = run.step();
            if evaluation.verdict == Verdict::Bad {
                break evaluation.checkpoint;
            }
        };
        let begun = Instant::now();
        explain(run.catalogue(), alarm)?;
        explained.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        run.evaluator.explain(run.catalogue(), alarm)?;
        remembered.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        let page = report(run.catalogue(), run.machine)?.to_html();
        reported.push(begun.elapsed().as_secs_f64() * 1e3);
        drop(page);
    }
    rows.push(("explain_ms/offline", "ms", explained));
    rows.push(("explain_ms/evaluator-at-hand", "ms", remembered));
    rows.push(("report_ms", "ms", reported));
    save(rows)
}

fn save(rows: Vec<(&str, &str, Vec<f64>)>) -> Result<(), Box<dyn std::error::Error>> {
    let mut json = Vec::new();
    println!("{:<30} {:>6} {:>10} {:>10} {:>6}", "name", "unit", "p50", "p99", "n");
    for (name, unit, mut values) in rows {
        values.sort_by(f64::total_cmp);
        let at = |per_cent: usize| values[(values.len() - 1) * per_cent / 100];
        let (p50, p99, n) = (at(50), at(99), values.len());
        println!("{name:<30} {unit:>6} {p50:>10.3} {p99:>10.3} {n:>6}");
        let mut line = String::new();
        write!(
            line,
            r#"  {{"name": "{name}", "unit": "{unit}", "p50": {p50:.4}, "p99": {p99:.4}, "n": {n}}}"#
        )?;
        json.push(line);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let dir = target.join("bench");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("analytics.json"), format!("[\n{}\n]\n", json.join(",\n")))?;
    Ok(())
}
