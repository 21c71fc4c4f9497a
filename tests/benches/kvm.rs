//! The microVM with its store, on this host's KVM: a bare guest of 1 GiB that writes one word a page.
//!
//! `make bench` runs it; `RETROVISOR_BENCH=pause`, `roomy`, `rollback`, `branch`, `slowdown` or `worker` runs one group. Rows go to
//! `target/bench/kvm.json`.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![expect(clippy::cast_precision_loss, reason = "counts of a benchmark fit in 52 bits")]

mod microvm;

use retrovisor_tests::Measured;

fn main() {
    if std::env::args_os().nth(1).is_some_and(|word| word == microvm::WORD) {
        let code = retrovisor_machine::kvm::worker_process();
        std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
    }
    let only = std::env::var("RETROVISOR_BENCH").ok();
    let wanted = |group: &str| only.as_deref().is_none_or(|only| only == group);
    let mut measured = Measured::default();
    let Some(mut lab) = microvm::Lab::new() else { return };
    if wanted("pause") {
        microvm::pause(&mut lab, &mut measured);
    }
    if wanted("roomy") {
        microvm::roomy(&mut lab, &mut measured);
    }
    if wanted("rollback") {
        microvm::rollback(&mut lab, &mut measured);
    }
    if wanted("branch") {
        microvm::branch(&mut lab, &mut measured);
    }
    if wanted("slowdown") {
        microvm::slowdown(&mut lab, &mut measured);
    }
    drop(lab);
    if wanted("worker") {
        microvm::worker(&mut measured);
    }
    measured.finish("kvm").unwrap();
    microvm::print_peers();
}
