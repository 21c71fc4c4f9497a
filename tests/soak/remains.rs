//! What must not be there at the end.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use crate::daemon::Usage;
use crate::world::{ATTACHED, RAN, World, processes_with};

/// Descriptors that the daemon may have open at one time and not at another: connections, a file being read.
const DESCRIPTORS_SLACK: usize = 24;
/// Memory that caches of the daemon may gain.
const RESIDENT_SLACK_KIB: u64 = 128 << 10;

/// Checks the store and the guests' memory, ends everything, and checks that nothing stays.
pub(crate) fn check(mut world: World) {
    world.must_be_sound();
    for machine in [RAN, ATTACHED] {
        let audit = world.json(&["audit", machine]);
        assert_eq!(audit["mismatched_pages"], 0, "{machine}: {audit:#}");
        for disk in audit["disks"].as_array().expect("the disks of an audit") {
            assert_eq!(disk["mismatched_blocks"], 0, "{machine}: {audit:#}");
        }
    }
    let verified = world.json(&["verify"]);
    assert_eq!(verified["damaged"], serde_json::json!([]), "{verified:#}");
    compare(&world.usage);
    for machine in [RAN, ATTACHED] {
        world.must(&["stop", machine]);
        world.must(&["remove", machine, "--yes"]);
    }
    world.wait_for_qemu();
    world.must(&["prune", "--yes"]);
    world.end_daemon();
    let processes = processes_with(world.dir().to_str().expect("a printable path"));
    assert!(processes.is_empty(), "these processes are left: {processes:#?}");
    let files = files_of_machines(&world.store());
    assert!(files.is_empty(), "these files are left: {files:#?}");
    world.print_refusals();
}

/// The daemon needs no more at the end of its calm part than at the beginning.
fn compare(usage: &[Usage]) {
    let quarter = usage.len() / 4;
    if quarter == 0 {
        eprintln!("SKIPPED: too short to see the daemon grow");
        return;
    }
    let median = |of: &[Usage]| {
        let mut resident: Vec<u64> = of.iter().map(|usage| usage.resident_kib).collect();
        let mut descriptors: Vec<usize> = of.iter().map(|usage| usage.descriptors).collect();
        resident.sort_unstable();
        descriptors.sort_unstable();
        (resident[of.len() / 2], descriptors[of.len() / 2])
    };
    let (first, last) = (median(&usage[..quarter]), median(&usage[usage.len() - quarter..]));
    println!(
        "the daemon: {} MiB and {} descriptors, at the end {} MiB and {}",
        first.0 >> 10,
        first.1,
        last.0 >> 10,
        last.1
    );
    assert!(last.0 < first.0 + first.0 / 4 + RESIDENT_SLACK_KIB, "the daemon's memory grows: {usage:?}");
    assert!(last.1 < first.1 + DESCRIPTORS_SLACK, "the daemon's descriptors grow: {usage:?}");
}

/// Files and sockets of machines in the store.
fn files_of_machines(store: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a file's type");
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_socket() || path.starts_with(store.join("machines")) {
                found.push(path);
            }
        }
    }
    found
}
