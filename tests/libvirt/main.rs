//! A domain of libvirt 9, attached, and libvirt's own saves and snapshots of it: `make test-libvirt`.
//!
//! `LIBVIRT` has the folder that `setup/libvirt.sh` prints. The guest checks its memory and its file system all the
//! time and must find no corruption. It is booted once: every later process of its domain continues a state that
//! libvirt saved. Two domains are tried, because memory and the filter of system calls decide how written frames are
//! found.

mod domain;
mod libvirtd;

use std::path::PathBuf;
use std::time::Duration;

use retrovisor_tests::{Daemon, GuestImage, wait_until};
use serde_json::{Value, json};

use domain::Domain;
use libvirtd::Libvirtd;

/// A state of this guest with its memory is about 100 MB, one without is 0.5 MB.
const SAVED_BYTES_MIN: u64 = 64 << 20;

fn main() {
    let programs = std::env::var_os("LIBVIRT").expect("LIBVIRT: the folder that `setup/libvirt.sh` prints");
    let programs = PathBuf::from(programs);
    let image = GuestImage::find().expect("the guest: `make setup`");
    let host_memory = ["seccomp_sandbox = 0", "memory_backing_dir = \"/dev/shm\""];
    for (memory, settings) in [("memfd", &[][..]), ("file", &host_memory)] {
        let domain = Domain::start(Libvirtd::start(&programs, settings), &image, memory);
        println!("memory from {memory}: started");
        std::fs::create_dir(domain.store()).expect("the store's folder");
        let daemon = Daemon::start(&domain.store());
        attached_and_saved(&daemon, &domain);
    }
}

fn attached_and_saved(daemon: &Daemon, domain: &Domain) {
    let found = domain.found();
    attach(daemon, domain);
    println!("attached; written frames are found by {}", daemon.json(&["show", "g"])["dirty_finder"]);
    for label in ["first", "second"] {
        let _made = daemon.json(&["checkpoint", "g", "--label", label]);
        std::thread::sleep(Duration::from_secs(3));
        go_back(daemon, domain, label);
    }
    go_back(daemon, domain, "first");
    go_back(daemon, domain, "second");
    println!("rolled back to a checkpoint before and one after a rollback");
    suspended_by_libvirt(daemon, domain);
    println!("suspended and resumed by libvirt");
    detach(daemon, domain, &found);

    let detached_bytes = save_and_restore(domain, || {});
    snapshot_and_revert(domain, || {});
    println!("detached: saved ({detached_bytes} bytes) and restored, snapshot and revert");

    // QEMU's process is another one; the domain is not.
    attach(daemon, domain);
    go_back(daemon, domain, "second");
    println!("rolled back in the process that libvirt restored");
    let attached_bytes = save_and_restore(domain, || is_gone(daemon));
    assert!(attached_bytes > detached_bytes / 2, "{attached_bytes} bytes, detached {detached_bytes}");
    attach(daemon, domain);
    go_back(daemon, domain, "first");
    // libvirt reverts by a new process.
    snapshot_and_revert(domain, || is_gone(daemon));
    attach(daemon, domain);
    let _made = daemon.json(&["checkpoint", "g", "--label", "third"]);
    std::thread::sleep(Duration::from_secs(2));
    go_back(daemon, domain, "third");
    go_back(daemon, domain, "second");
    assert_eq!(daemon.json(&["audit", "g"])["mismatched_pages"], 0);
    println!(
        "attached: saved ({attached_bytes} bytes) and restored, snapshot and revert, rolled back after each"
    );
    detach_to_no_snapshots(daemon, domain);
    println!("detached, nothing left");
}

fn attach(daemon: &Daemon, domain: &Domain) {
    let _attached = daemon.run(&["attach", "g", "--qmp", &domain.qmp(), "--every", "500ms"]).ok();
    let count = || daemon.json(&["show", "g"])["checkpoints"].as_u64().expect("a number");
    let before = count();
    wait_until("checkpoints", Duration::from_mins(1), || count() >= before + 3);
}

fn go_back(daemon: &Daemon, domain: &Domain, label: &str) {
    let back = daemon.json(&["rollback", "g", "--to", label, "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true, "{back:#}");
    let _tick = domain.next_tick();
}

fn suspended_by_libvirt(daemon: &Daemon, domain: &Domain) {
    // libvirt takes a domain in the pause of a checkpoint for a suspended one, and then sends nothing to QEMU.
    wait_until("a suspension outside a pause", Duration::from_mins(1), || {
        domain.virsh(&["suspend", "guest"]);
        std::thread::sleep(Duration::from_secs(1));
        domain.state() == "paused"
    });
    let shown = daemon.json(&["show", "g"]);
    assert_eq!(shown["state"], "paused", "{shown:#}");
    assert_eq!(shown["state_reason"], "paused by another program", "{shown:#}");
    let console = domain.console();
    let _made = daemon.json(&["checkpoint", "g", "--label", "suspended"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((domain.state().as_str(), domain.console()), ("paused", console));
    domain.virsh(&["resume", "guest"]);
    let _tick = domain.next_tick();
    wait_until("the daemon to see it", Duration::from_secs(10), || {
        daemon.json(&["show", "g"])["state"] == "running"
    });
}

fn detach(daemon: &Daemon, domain: &Domain, found: &Value) {
    let detached = daemon.json(&["detach", "g"]);
    assert_eq!(detached["left_behind"], json!([]), "{detached:#}");
    let now = domain.found();
    assert_eq!(&now, found, "before the attach:\n{found:#}\nafter the detach:\n{now:#}");
    let _tick = domain.next_tick();
}

fn detach_to_no_snapshots(daemon: &Daemon, domain: &Domain) {
    let detached = daemon.json(&["detach", "g"]);
    assert_eq!(detached["left_behind"], json!([]), "{detached:#}");
    let now = domain.found();
    assert_eq!(now["snapshots"], "", "{now:#}");
    assert!(!now.to_string().contains("retrovisor"), "{now:#}");
    let _tick = domain.next_tick();
}

/// `virsh save` and `virsh restore`; returns the bytes of the file. `between` is called while there is no process.
fn save_and_restore(domain: &Domain, between: impl Fn()) -> u64 {
    let file = domain.file("saved");
    let before = domain.next_tick();
    domain.save(&file);
    between();
    let bytes = std::fs::metadata(&file).expect("the saved state").len();
    assert!(bytes > SAVED_BYTES_MIN, "{bytes} bytes are not the guest's memory");
    domain.virsh(&["restore", &file]);
    run_on(domain);
    let after = domain.next_tick();
    assert!((before..before + 300).contains(&after), "tick {after} after {before}");
    std::fs::remove_file(&file).expect("the saved state is removed");
    bytes
}

/// `virsh snapshot-create` and `virsh snapshot-revert`. `after` is called after the revert.
fn snapshot_and_revert(domain: &Domain, after: impl Fn()) {
    domain.virsh(&["snapshot-create-as", "guest", "owners"]);
    run_on(domain);
    let then = domain.next_tick();
    std::thread::sleep(Duration::from_secs(3));
    let later = domain.next_tick();
    domain.virsh(&["snapshot-revert", "guest", "owners"]);
    after();
    run_on(domain);
    let back = domain.next_tick();
    assert!(back < later && back <= then + 10, "tick {back} after the revert to {then} from {later}");
    domain.virsh(&["snapshot-delete", "guest", "owners"]);
}

/// Resumes the domain if libvirt saved it as a suspended one, as it does in the pause of a checkpoint.
fn run_on(domain: &Domain) {
    if domain.state() == "paused" {
        domain.virsh(&["resume", "guest"]);
    }
}

fn is_gone(daemon: &Daemon) {
    let shown = || daemon.json(&["show", "g"]);
    wait_until("the daemon to see the end of QEMU", Duration::from_secs(30), || shown()["state"] == "gone");
    assert_ne!(shown()["state_reason"], "", "{:#}", shown());
}
