//! One history under several versions of QEMU: `make test-qemu-versions`.
//!
//! `QEMUS` has the folders of the versions, oldest first, as `PATH` has them. A machine is started under the first. Each
//! later one restores a checkpoint of the first in a new process, records, goes back in place, and audits the memory; a
//! QEMU that was started by hand is attached, rolled back and detached under each. At the end the first version refuses
//! what a later one recorded, leaves no process, and restores its own checkpoint again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use retrovisor_tests::{Daemon, ForeignOptions, ForeignQemu, GuestImage, wait_until};

fn main() {
    let folders =
        std::env::var_os("QEMUS").expect("QEMUS: the folders of several versions of QEMU, oldest first");
    let folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    let image = GuestImage::find().expect("the guest: `make setup`");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = dir.path().join("store");
    std::fs::create_dir(&store).expect("the store's folder");

    let first = folders.first().expect("a folder in QEMUS");
    let daemon = Daemon::start_with_programs(&store, first);
    daemon.run_guest(&image, "500ms");
    std::thread::sleep(Duration::from_secs(5));
    let _old = daemon.json(&["checkpoint", "g", "--label", "old"]);
    let tick = daemon.next_tick();
    end(daemon);
    println!("{}: recorded", version(first));

    for (at, folder) in folders.iter().enumerate() {
        let daemon = Daemon::start_with_programs(&store, folder);
        let restored = daemon.json(&["rollback", "g", "--to", "old", "--verify-image"]);
        assert_eq!(restored["rollback"]["image_matches"], true, "{restored:#}");
        assert_eq!(restored["rollback"]["new_process"], true, "{restored:#}");
        let shown = daemon.json(&["show", "g"])["driver_version"].as_str().expect("a version").to_owned();
        assert!(version(folder).contains(&shown), "{shown} is shown for {}", version(folder));
        assert!(daemon.next_tick() <= tick + 100, "the guest goes on from where it was");
        let _new = daemon.json(&["checkpoint", "g", "--label", &format!("new-{at}")]);
        let back = daemon.json(&["rollback", "g", "--to", "old", "--verify-image"]);
        assert_eq!(back["rollback"]["image_matches"], true, "{back:#}");
        let _tick = daemon.next_tick();
        assert_eq!(daemon.json(&["audit", "g"])["mismatched_pages"], 0);
        attach(&daemon, folder, &image);
        end(daemon);
        println!("{}: restored, rolled back, audited; attached, rolled back, detached", version(folder));
    }

    // Booted again under the newest, it has the newest machine type: the older state fits a new process only.
    let newest = folders.last().expect("a folder in QEMUS");
    let daemon = Daemon::start_with_programs(&store, newest);
    daemon.run_guest(&image, "500ms");
    let refused = daemon.run(&["rollback", "g", "--to", "old"]);
    assert_eq!(refused.code, 4, "{refused:#?}");
    assert!(
        refused.stderr.contains("the board") && refused.stderr.contains("retrovisor stop"),
        "{refused:#?}"
    );
    let _tick = daemon.next_tick();
    let _stopped = daemon.run(&["stop", "g"]).ok();
    let restored = daemon.json(&["rollback", "g", "--to", "old", "--verify-image"]);
    assert_eq!(restored["rollback"]["image_matches"], true, "{restored:#}");
    let _tick = daemon.next_tick();
    end(daemon);
    println!(
        "{}: booted again, refused the older state in place, restored it in a new process",
        version(newest)
    );

    let daemon = Daemon::start_with_programs(&store, first);
    for at in 1..folders.len() {
        let refused = daemon.run(&["rollback", "g", "--to", &format!("new-{at}")]);
        assert_eq!(refused.code, 4, "{refused:#?}");
        assert!(refused.stderr.contains("or later"), "{refused:#?}");
        assert_eq!(daemon.json(&["show", "g"])["state"], "gone");
    }
    let restored = daemon.json(&["rollback", "g", "--to", "old", "--verify-image"]);
    assert_eq!(restored["rollback"]["image_matches"], true, "{restored:#}");
    let _tick = daemon.next_tick();
    end(daemon);
    println!("{}: refused what later versions recorded, restored its own", version(first));
}

/// Stops the machine, and ends the daemon.
fn end(daemon: Daemon) {
    let _stopped = daemon.run(&["stop", "g"]).ok();
    drop(daemon);
}

/// `QEMU emulator version 7.2.22 (…)`.
fn version(folder: &Path) -> String {
    let output =
        Command::new(folder.join("qemu-system-x86_64")).arg("--version").output().expect("QEMU starts");
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

fn attach(daemon: &Daemon, folder: &Path, image: &GuestImage) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let foreign = ForeignQemu::start(&ForeignOptions {
        programs: Some(folder),
        kernel: &image.kernel,
        initrd: &image.initrd,
        append: "console=ttyS0 quiet tsc=unstable",
        disk: &image.disk,
        memory_mib: 256,
        vcpus: 1,
        dir: dir.path(),
    });
    wait_until("the foreign guest's tick", Duration::from_mins(2), || foreign.console().contains("tick "));
    let _attached = daemon.run(&["attach", "foreign", "--qmp", &foreign.qmp(), "--every", "500ms"]).ok();
    for round in 0..3 {
        let label = format!("round-{round}");
        let _made = daemon.json(&["checkpoint", "foreign", "--label", &label]);
        std::thread::sleep(Duration::from_secs(2));
        let back = daemon.json(&["rollback", "foreign", "--to", &label, "--verify-image"]);
        assert_eq!(back["rollback"]["image_matches"], true, "{back:#}");
    }
    let length = foreign.console().len();
    wait_until("a tick after the rollbacks", Duration::from_mins(1), || foreign.console().len() > length);
    assert!(!foreign.console().contains("CORRUPT"), "{}", foreign.console());
    let detached = daemon.json(&["detach", "foreign"]);
    assert_eq!(detached["left_behind"], serde_json::json!([]), "{detached:#}");
    drop(foreign);
    let _removed = daemon.run(&["remove", "foreign", "--yes"]).ok();
}
