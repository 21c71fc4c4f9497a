//! A file system that is full under the whole store, the guest's disk included.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use retrovisor_tests::{Daemon, GuestImage, retrovisor, wait_until};

#[test]
fn a_full_store_can_be_read_and_pruned_and_the_guest_stops_until_there_is_space() {
    let Some(image) = GuestImage::find() else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: a small file system can be mounted by root only");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut mount = Command::new("mount");
    let mounted = mount.args(["-t", "tmpfs", "-o", "size=300m,mode=0700", "tmpfs"]).arg(dir.path());
    if !mounted.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a tmpfs is not permitted here");
        return;
    }
    let outcome = std::panic::catch_unwind(|| fill_up(dir.path(), &image));
    let unmounted = Command::new("umount").arg("-l").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    outcome.unwrap();
}

/// Writes a file until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    let _full = std::io::copy(&mut std::io::repeat(1), &mut file);
}

fn fill_up(store: &Path, image: &GuestImage) {
    let daemon = Daemon::start(store);
    daemon.run_guest(image, "300ms");
    let _made = daemon.json(&["checkpoint", "g", "--label", "whole"]);
    daemon.wait_for_checkpoints("g", 12);
    let ballast = store.join("ballast");
    fill(&ballast);
    // The guest writes to its disk: QEMU stops it.
    let writing = daemon.send("dd if=/dev/urandom of=/data/big bs=64k count=400; sync");
    wait_until("the guest to stop", Duration::from_mins(1), || {
        fill(&ballast);
        daemon.state("g") == "paused"
    });
    let reason = daemon.json(&["show", "g"])["state_reason"].as_str().unwrap().to_owned();
    assert!(reason.to_lowercase().contains("no space"), "{reason}");
    must_read(store, "with a daemon");

    // A daemon that is killed on a full disk: reading needs none, nor does making space.
    let store = &daemon.kill();
    fill(&ballast);
    must_read(store, "without a daemon");
    let few =
        ["prune", "g", "--keep-last", "2", "--keep-hourly", "0", "--keep-daily", "0", "--keep-weekly", "0"];
    let few = [&few[..], &["--keep-monthly", "0", "--undo-depth", "0", "--yes", "--json"]].concat();
    let plan = retrovisor(store, &["prune", "g", "--dry-run", "--json"]).ok().json();
    assert!(plan["needed_bytes"].as_u64().unwrap() > 0, "{plan:#}");
    let pruned = retrovisor(store, &few).ok().json();
    assert!(pruned["checkpoints"].as_u64().unwrap() > 0, "{pruned:#}");

    // A daemon that starts finds the guest stopped by its disk, and says so.
    fill(&ballast);
    let daemon = Daemon::start(store);
    assert_eq!(daemon.state("g"), "paused");
    std::fs::remove_file(&ballast).unwrap();
    let _resumed = daemon.json(&["resume", "g"]);
    drop(writing);
    assert_eq!(daemon.state("g"), "running");
    let _tick = daemon.next_tick();
    let _made = daemon.json(&["checkpoint", "g", "--label", "space"]);
    let back = daemon.json(&["rollback", "g", "--to", "whole", "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true, "{back:#}");
    let _tick = daemon.next_tick();
    assert_eq!(daemon.json(&["verify"])["damaged"], serde_json::json!([]));

    // What is removed with its history needs no more space either.
    let _stopped = daemon.run(&["stop", "g"]).ok();
    let store = &daemon.kill();
    fill(&ballast);
    let removed = retrovisor(store, &["remove", "g", "--yes", "--json"]).ok().json();
    assert!(removed["freed_bytes"].as_u64().unwrap() > 0, "{removed:#}");
}

/// Every command that only reads works.
fn must_read(store: &Path, when: &str) {
    let reads: [&[&str]; 10] = [
        &["list"],
        &["show", "g"],
        &["log", "g"],
        &["anomalies", "g"],
        &["inspect", "g", "tasks", "--at", "whole"],
        &["query", "SELECT count(*) FROM checkpoint"],
        &["diff", "g", "whole", "latest"],
        &["rollback", "g", "--to", "whole", "--dry-run"],
        &["prune", "g", "--dry-run"],
        &["verify"],
    ];
    for arguments in reads {
        let ran = retrovisor(store, arguments);
        assert_eq!(ran.code, 0, "{when}: {arguments:?}: {ran:#?}");
    }
}
