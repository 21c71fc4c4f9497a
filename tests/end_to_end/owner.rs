//! The owner of an attached QEMU saves and loads its own snapshots, and gets QEMU back as it was.

use std::time::Duration;

use retrovisor_tests::{Daemon, ForeignOptions, ForeignQemu, GuestImage, Owner, wait_until};
use serde_json::json;

#[test]
fn snapshots_of_the_owner_are_whole_and_qemu_is_given_back() {
    let Some(image) = GuestImage::find() else { return };
    let (store, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let qemu = ForeignQemu::start(&ForeignOptions::small(&image, dir.path()));
    let (mut owner, daemon) = (qemu.owner(), Daemon::start(store.path()));
    qemu.next_tick();
    save(&mut owner, "before");
    let attach = ["attach", "g", "--qmp", &qemu.qmp(), "--every", "200ms"];
    let _attached = daemon.run(&attach).ok();
    daemon.wait_for_checkpoints("g", 3);
    // Between checkpoints its own snapshots have the memory.
    save(&mut owner, "meanwhile");
    daemon.wait_for_checkpoints("g", 2);

    // Detached in order; by the end of the daemon; by the next daemon after a death.
    assert_eq!(daemon.json(&["detach", "g"])["left_behind"], json!([]));
    assert_eq!(owner.additions(), [""; 0]);
    for name in ["before", "meanwhile"] {
        load(&mut owner, &qemu, name);
    }
    save(&mut owner, "detached");
    load(&mut owner, &qemu, "detached");

    let _attached = daemon.run(&attach).ok();
    daemon.wait_for_checkpoints("g", 2);
    assert!(daemon.terminate() < Duration::from_secs(10));
    let left: Vec<_> = owner.additions().into_iter().filter(|left| !left.starts_with("snapshot ")).collect();
    assert_eq!(left, [""; 0], "an orderly end leaves only what the next daemon needs");
    save(&mut owner, "ended");

    let daemon = Daemon::start(store.path());
    daemon.wait_for("g", "running");
    daemon.wait_for_checkpoints("g", 2);
    let store = daemon.kill();
    save(&mut owner, "killed");
    let daemon = Daemon::start(&store);
    daemon.wait_for("g", "running");
    assert_eq!(daemon.json(&["detach", "g"])["left_behind"], json!([]));
    assert_eq!(owner.additions(), [""; 0]);
    for name in ["ended", "killed", "before"] {
        load(&mut owner, &qemu, name);
    }
}

/// Saves a snapshot with the memory, which takes some megabytes.
fn save(owner: &mut Owner, name: &str) {
    // While a checkpoint is taken, QEMU refuses a second job.
    wait_until("a snapshot of the owner", Duration::from_mins(1), || {
        let said = owner.human(&format!("savevm {name}"));
        if !said.is_empty() {
            println!("savevm {name}: {said}");
        }
        said.is_empty()
    });
    let nodes = owner.run("query-named-block-nodes", &json!({}));
    let snapshots = nodes.as_array().unwrap().iter().filter_map(|node| node["image"]["snapshots"].as_array());
    let bytes: Vec<_> = snapshots
        .flatten()
        .filter(|one| one["name"] == name)
        .map(|one| one["vm-state-size"].clone())
        .collect();
    let is_whole = bytes.iter().any(|bytes| bytes.as_u64().unwrap() > 20 << 20);
    assert!(is_whole, "the snapshot {name} has no memory: {bytes:?}");
}

fn load(owner: &mut Owner, qemu: &ForeignQemu, name: &str) {
    assert_eq!(owner.human(&format!("loadvm {name}")), "", "{name}");
    assert_eq!(owner.run("query-status", &json!({}))["running"], true, "{name}");
    qemu.next_tick();
}
