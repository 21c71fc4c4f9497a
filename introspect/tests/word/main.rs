//! Against the guest's own word: what is read of a stopped guest's memory must be what the guest said of itself just
//! before and just after. One test a kernel; `make test-kernels` has all of them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod dump;
#[path = "../live/mod.rs"]
mod live;
mod statement;

use dump::Dump;
use live::Setting;

/// One vCPU, four-level page tables, isolated from user mode.
fn small() -> Setting {
    Setting { vcpus: 1, cpu: "max,la57=off", append: "pti=on", ..Setting::default() }
}

/// Four vCPUs, five levels, no isolation.
fn large() -> Setting {
    Setting {
        vcpus: 4,
        cpu: "max",
        accelerator: "tcg,thread=single",
        append: "pti=off",
        ..Setting::default()
    }
}

fn both(kernel: &str) {
    for (circumstances, setting) in [("small", small()), ("large", large())] {
        let Some(dump) = Dump::of(kernel, circumstances, &setting) else { return };
        eprintln!("{kernel} {circumstances}: {} threads", dump.before.threads().len());
    }
}

#[test]
fn kernel_5_10_cloud() {
    both("bullseye-cloud");
}
#[test]
fn kernel_6_1_cloud() {
    both("bookworm-cloud");
}
#[test]
fn kernel_7_cloud() {
    both("sid-cloud");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_6_12_cloud() {
    both("trixie-cloud");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_5_10_plain() {
    both("bullseye-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_6_1_plain() {
    both("bookworm-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_6_12_plain() {
    both("trixie-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_7_plain() {
    both("sid-plain");
}
