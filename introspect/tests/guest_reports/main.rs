//! Compares the facts read from a stopped guest's memory with the guest's own reports from just before and just after.
//! One test for each kernel; `make test-kernels` runs all of them.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test of numbers that are known to be small"
)]

mod counters;
mod dump;
mod files;
mod hostile;
mod kernel;
mod library;
#[path = "../live/mod.rs"]
mod live;
mod log;
mod modules;
mod mounts;
mod processors;
mod reuse;
mod sockets;
mod statement;
mod symbols;
mod tasks;

use dump::Dump;
use live::Setting;
use retrovisor_introspect::Introspector;

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

fn both(release: &str, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    for (circumstances, setting) in [("small", small()), ("large", large())] {
        let Some(dump) = Dump::of(name, circumstances, &setting) else { return };
        eprintln!("{name}, {circumstances}: {} threads", dump.before.threads().len());
        let mut introspector = Introspector::new();
        let observation = introspector.observe(&dump.memory, &dump.registers);
        library::changes_nothing(&dump, &observation, folder.path());
        let linux = observation.linux.unwrap_or_else(|| panic!("no Linux guest: {:?}", observation.reason));
        let found = introspector.kernel().unwrap();
        assert!(found.release().starts_with(release), "{}", found.release());
        symbols::agree(&found, &dump);
        kernel::agrees(&linux, &dump);
        tasks::agree(&linux, &dump);
        modules::agree(&linux, &dump);
        log::agrees(&linux, &dump);
        symbols::of_modules_agree(&introspector, &dump);
        files::agree(&linux, &dump);
        mounts::agree(&linux, &dump);
        sockets::agree(&linux, &dump);
        processors::agree(&linux, &dump);
        counters::agree(&linux, &dump);
        kernel::is_found_without_registers(&found, &dump);
        assert_eq!(linux.integrity, [], "a healthy guest has no violation");
    }
}

#[test]
fn kernel_5_10_cloud() {
    both("5.10.", "bullseye-cloud");
}
#[test]
fn kernel_6_1_cloud() {
    both("6.1.", "bookworm-cloud");
}
#[test]
fn kernel_7_cloud() {
    both("7.", "sid-cloud");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_6_12_cloud() {
    both("6.12.", "trixie-cloud");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_5_10_plain() {
    both("5.10.", "bullseye-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_6_1_plain() {
    both("6.1.", "bookworm-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_6_12_plain() {
    both("6.12.", "trixie-plain");
}
#[test]
#[ignore = "of the full matrix: make test-kernels"]
fn kernel_7_plain() {
    both("7.", "sid-plain");
}

#[test]
fn damaged_memories_are_survived() {
    let Some(dump) = Dump::of("bookworm-cloud", "large", &large()) else { return };
    hostile::mutations_are_survived(&dump);
}

#[test]
fn unchanged_frames_are_not_read_again() {
    let Some(dump) = Dump::of("bookworm-cloud", "large", &large()) else { return };
    reuse::unchanged_frames_are_not_read(&dump);
}
