//! What a start of the daemon does with machines that were stopped, lost or watched, and what it leaves alone.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use retrovisor_tests::{Daemon, GuestImage, command_path, qemus_in, wait_until};

#[test]
fn a_refused_restore_leaves_nothing_and_a_later_start_moves_no_live_guest() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "300ms");
    let _made = daemon.json(&["checkpoint", "g", "--label", "a"]);
    kill(qemus_in(&daemon.runtime_dir())[0], Signal::SIGKILL).unwrap();
    daemon.wait_for("g", "gone");
    let refused = daemon.run(&["rollback", "g", "--to", "a", "--clock", "jump-to-now"]);
    assert_eq!(refused.code, 4, "{refused:#?}");
    assert!(qemus_in(&daemon.runtime_dir()).is_empty(), "a refused restore left a process");
    assert_eq!(daemon.state("g"), "gone");

    // Booted again: the daemon dies, and the next one does not take the live guest to `a`.
    let kernel = image.kernel.to_str().unwrap();
    let (initrd, disk) = (image.initrd.to_str().unwrap(), image.disk.to_str().unwrap());
    let run = ["run", "g", "--driver", "qemu", "--kernel", kernel, "--initrd", initrd, "--disk", disk];
    let _ran = daemon.run(&[&run[..], &["--vcpus", "2", "--every", "300ms"]].concat()).ok();
    wait_until("the second boot's tick", Duration::from_mins(1), || {
        daemon.last_tick(0).is_some_and(|tick| tick > 3)
    });
    let _said = daemon.shell("echo live >/data/letter; sync");
    let daemon = Daemon::start(&daemon.kill());
    assert_eq!(daemon.state("g"), "running");
    assert_eq!(daemon.shell("cat /data/letter").trim(), "live");
    let _tick = daemon.next_tick();

    // Paused by the user: it stays so, whether the daemon dies or ends while somebody watches.
    let _paused = daemon.json(&["pause", "g"]);
    let daemon = Daemon::start(&daemon.kill());
    assert_eq!(daemon.state("g"), "paused");
    let mut watcher = Command::new(command_path())
        .arg("--store")
        .arg(store.path())
        .args(["watch", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(watcher.try_wait().unwrap().is_none(), "nobody watches");
    let took = daemon.terminate();
    assert!(took < Duration::from_secs(5), "{took:?}");
    wait_until("the watcher's end", Duration::from_secs(10), || watcher.try_wait().unwrap().is_some());
    let daemon = Daemon::start(store.path());
    assert_eq!(daemon.state("g"), "paused");
    let _resumed = daemon.json(&["resume", "g"]);
    let _tick = daemon.next_tick();
}
