//! Wrong arguments, dead peers, damaged and foreign stores: a clear word, and nothing lost.

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use retrovisor_tests::{Daemon, GuestImage, qemus_in, retrovisor, wait_until};

#[test]
fn a_missing_kernel_is_named() {
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    let ran = daemon.run(&["run", "g", "--kernel", "/nonexistent/vmlinuz"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("/nonexistent/vmlinuz"), "{ran:?}");
    assert_eq!(daemon.json(&["list"]), serde_json::json!([]));
}

#[test]
fn a_qmp_socket_that_is_gone_is_named() {
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    let ran = daemon.run(&["attach", "g", "--qmp", "/nonexistent/qmp.sock"]);
    assert!(ran.code == 4 || ran.code == 1, "{ran:?}");
    assert!(ran.stderr.contains("/nonexistent/qmp.sock"), "{ran:?}");
}

#[test]
fn a_qemu_that_is_too_old_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    let qmp = store.path().join("old.qmp");
    let listener = std::os::unix::net::UnixListener::bind(&qmp).unwrap();
    let greeting = serde_json::json!({ "QMP": {
        "version": { "qemu": { "micro": 0, "minor": 2, "major": 6 }, "package": "" }, "capabilities": ["oob"],
    } });
    // It is looked at before it is attached: each connection is greeted, and answered as an old QEMU does. The thread
    // ends with the test.
    std::thread::spawn(move || {
        for mut peer in listener.incoming().map_while(Result::ok) {
            let mut asked = std::io::BufReader::new(peer.try_clone().unwrap()).lines();
            if writeln!(peer, "{greeting}").is_err() {
                continue;
            }
            while let Some(Ok(line)) = asked.next() {
                let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
                if writeln!(peer, "{}", serde_json::json!({ "return": {}, "id": asked["id"] })).is_err() {
                    break;
                }
            }
        }
    });
    let ran = daemon.run(&["attach", "g", "--qmp", qmp.to_str().unwrap()]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("6.2") && ran.stderr.contains("7.2"), "{ran:?}");
    assert_eq!(daemon.json(&["list"]), serde_json::json!([]));
}

#[test]
fn a_second_daemon_on_the_same_store_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    let ran = retrovisor(store.path(), &["serve"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("in use by process"), "{ran:?}");
    let _list = daemon.run(&["list"]).ok();
}

#[test]
fn a_store_from_a_newer_version_is_left_alone() {
    let store = tempfile::tempdir().unwrap();
    drop(Daemon::start(store.path()));
    let catalogue = store.path().join("catalogue.sqlite");
    rusqlite::Connection::open(&catalogue).unwrap().pragma_update(None, "user_version", 9999).unwrap();
    let before = std::fs::read(&catalogue).unwrap();
    for arguments in [&["serve"][..], &["list"]] {
        let ran = retrovisor(store.path(), arguments);
        assert!(ran.code != 0 && ran.stderr.contains("9999"), "{ran:?}");
    }
    assert!(std::fs::read(&catalogue).unwrap() == before, "the store was changed");
}

#[test]
fn a_damaged_pack_is_named_and_the_rest_stays_readable() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "300ms");
    let _stopped = daemon.run(&["stop", "g"]).ok();
    drop(daemon);
    let packs = std::fs::read_dir(store.path().join("packs")).unwrap();
    let pack =
        packs.map(|pack| pack.unwrap().path()).max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&pack).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    drop(file);
    let ran = retrovisor(store.path(), &["verify"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let name = pack.file_stem().unwrap().to_str().unwrap();
    assert!(ran.stdout.contains("damaged:") && ran.stdout.contains(&format!("pack {name}")), "{ran:?}");
    let _log = retrovisor(store.path(), &["log", "g"]).ok();
    let _query = retrovisor(store.path(), &["query", "SELECT count(*) FROM checkpoint"]).ok();
}

#[test]
fn a_guest_that_dies_is_reported_and_can_be_restored() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "100ms");
    let _made = daemon.json(&["checkpoint", "g", "--label", "alive"]);
    let tick = daemon.next_tick();
    let qemu = qemu_of(&daemon);
    nix::sys::signal::kill(qemu, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("the loss to be noticed", std::time::Duration::from_secs(20), || {
        daemon.json(&["show", "g"])["state"] == "gone"
    });
    let ran = daemon.run(&["checkpoint", "g"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("retrovisor rollback g"), "{ran:?}");
    let back = daemon.json(&["rollback", "g", "--to", "alive", "--verify-image"]);
    assert_eq!(back["rollback"]["new_process"], true);
    assert_eq!(back["rollback"]["image_matches"], true);
    assert!(daemon.next_tick() <= tick + 20);
}

#[test]
fn a_qemu_that_does_not_answer_is_unreachable_until_it_does_or_is_ended() {
    use nix::sys::signal::{Signal, kill};
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "200ms");
    let _made = daemon.json(&["checkpoint", "g", "--label", "before"]);
    let state = |wanted: &str| {
        wait_until(wanted, std::time::Duration::from_mins(2), || {
            daemon.json(&["show", "g"])["state"] == wanted
        });
    };
    let qemu = qemu_of(&daemon);
    kill(qemu, Signal::SIGSTOP).unwrap();
    state("unreachable");
    let refused = daemon.run(&["checkpoint", "g"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    kill(qemu, Signal::SIGCONT).unwrap();
    state("running");
    let back = daemon.json(&["rollback", "g", "--to", "before", "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true);
    let _tick = daemon.next_tick();
    kill(qemu, Signal::SIGSTOP).unwrap();
    let begun = std::time::Instant::now();
    let _ended = daemon.run(&["stop", "g", "--force"]).ok();
    assert!(begun.elapsed() < std::time::Duration::from_mins(1), "{:?}", begun.elapsed());
    assert_eq!(daemon.json(&["show", "g"])["state"], "gone");
    assert_eq!(kill(qemu, None), Err(nix::errno::Errno::ESRCH));
}

#[test]
fn a_guest_that_is_not_linux_is_kept_and_the_reason_is_said() {
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        eprintln!("SKIPPED: qemu-system-x86_64 is not installed: `make setup` does it");
        return;
    }
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    // Firmware without anything to boot, started by somebody else.
    let qmp = store.path().join("other.qmp");
    let memory = format!("/dev/shm/retrovisor-test-{}", std::process::id());
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-m",
            "64",
            "-M",
            "q35,memory-backend=ram",
            "-accel",
            "tcg",
        ])
        .args(["-object", &format!("memory-backend-file,id=ram,size=64M,mem-path={memory},share=on")])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
        .spawn()
        .unwrap();
    wait_until("the socket of the other QEMU", std::time::Duration::from_secs(20), || qmp.exists());
    let attached = daemon.run(&["attach", "g", "--qmp", qmp.to_str().unwrap(), "--every", "200ms"]);
    let inspected = daemon.run(&["inspect", "g", "memory"]);
    let moved = daemon.run(&["rollback", "g", "--to", "@1", "--verify-image", "--json"]);
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    let _gone = std::fs::remove_file(&memory);
    let (_attached, inspected, moved) = (attached.ok(), inspected.ok(), moved.ok());
    assert!(inspected.stdout.to_lowercase().contains("linux"), "the reason is missing: {inspected:?}");
    assert_eq!(moved.json()["rollback"]["image_matches"], true);
}

#[test]
fn a_full_disk_stops_checkpoints_and_loses_nothing() {
    let Some(image) = GuestImage::find() else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: a small file system can be mounted by root only");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Only the packs are on the small file system: the guest's own disk must not be what runs full.
    let packs = dir.path().join("store/packs");
    std::fs::create_dir_all(&packs).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=100m", "tmpfs"])
        .arg(&packs)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("SKIPPED: mounting a tmpfs is not permitted here");
        return;
    }
    let outcome = std::panic::catch_unwind(|| fill_up(&dir.path().join("store"), &packs, &image));
    let unmounted = Command::new("umount").arg("-l").arg(&packs).status().unwrap();
    assert!(unmounted.success());
    outcome.unwrap();
}

fn fill_up(store: &std::path::Path, packs: &std::path::Path, image: &GuestImage) {
    let daemon = Daemon::start(store);
    daemon.run_guest(image, "300ms");
    let whole = daemon.json(&["checkpoint", "g", "--label", "whole"])["name"].clone();
    let ballast = packs.join("ballast");
    let mut filled = std::fs::File::create(&ballast).unwrap();
    // Until nothing more fits.
    let _full = std::io::copy(&mut std::io::repeat(1), &mut filled);
    wait_until("a checkpoint that does not fit", std::time::Duration::from_secs(20), || {
        let ran = daemon.run(&["checkpoint", "g"]);
        ran.code == 1 && ran.stderr.contains("no space left")
    });
    let _tick = daemon.next_tick();
    wait_until("the failure to be shown", std::time::Duration::from_secs(20), || {
        daemon.json(&["show", "g"])["checkpoint_error"]
            .as_str()
            .is_some_and(|why| why.contains("no space left"))
    });
    // The last checkpoint of a stop fails as well: the machine runs on and stays managed.
    let refused = daemon.run(&["stop", "g"]);
    assert!(refused.code == 4 && refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(daemon.state("g"), "running");
    let _tick = daemon.next_tick();
    drop(filled);
    std::fs::remove_file(&ballast).unwrap();
    let _made = daemon.json(&["checkpoint", "g", "--label", "again"]);
    wait_until("checkpoints to be taken again", std::time::Duration::from_secs(20), || {
        daemon.json(&["show", "g"])["checkpoint_error"] == ""
    });
    let verified = daemon.json(&["verify"]);
    assert_eq!(verified["damaged"], serde_json::json!([]));
    let went = daemon.json(&["rollback", "g", "--to", "whole", "--verify-image"]);
    assert_eq!(
        (&went["rollback"]["image_matches"], &went["rollback"]["target"]["name"]),
        (&serde_json::json!(true), &whole)
    );
    let _tick = daemon.next_tick();
    // Full again: a stop without a last checkpoint, which leaves no process.
    let mut filled = std::fs::File::create(&ballast).unwrap();
    let _full = std::io::copy(&mut std::io::repeat(1), &mut filled);
    let _stopped = daemon.run(&["stop", "g", "--force"]).ok();
    assert_eq!(daemon.state("g"), "gone");
    assert!(qemus_in(&daemon.runtime_dir()).is_empty());
}

/// The process id of the guest's QEMU.
fn qemu_of(daemon: &Daemon) -> nix::unistd::Pid {
    *qemus_in(&daemon.runtime_dir()).first().expect("the guest's QEMU runs")
}
