//! The command and the daemon with microVMs.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use retrovisor_tests::{Daemon, GuestImage, wait_until};

use crate::lab;

/// The process that listens at a socket of a guest, as the kernel tells whoever connects.
pub(crate) fn worker(daemon: &Daemon, name: &str) -> Pid {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let stream = std::os::unix::net::UnixStream::connect(daemon.machine_dir(name).join("console")).unwrap();
    Pid::from_raw(getsockopt(&stream, PeerCredentials).unwrap().pid())
}

#[test]
fn a_microvm_lives_through_rollbacks_a_dead_daemon_and_a_dead_worker() {
    if !lab::boots_here() {
        return;
    }
    let Some(image) = GuestImage::files() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest_under("kvm", &image, "2s");
    let shown = daemon.json(&["show", "g"]);
    assert_eq!((&shown["driver"], &shown["state"]), (&"kvm".into(), &"running".into()), "{shown}");
    assert!(shown["confinement"].as_str().unwrap().contains("seccomp"), "{shown}");

    let here = daemon.json(&["checkpoint", "g", "--label", "here"]);
    let later = daemon.next_tick();
    let went = daemon.json(&["rollback", "g", "--to", "here", "--verify-image"]);
    assert_eq!(went["rollback"]["image_matches"], true, "{went}");
    assert_eq!(went["rollback"]["new_process"], false);
    assert!(daemon.next_tick() <= later + 40, "the guest goes on from its past");
    let undone = daemon.json(&["undo", "g", "--verify-image"]);
    assert_eq!(undone["rollback"]["image_matches"], true, "{undone}");
    let _tick = daemon.next_tick();
    let tasks = daemon.json(&["inspect", "g", "tasks", "--at", "here"]);
    assert!(tasks.to_string().contains("workload"), "{tasks}");
    let staged = daemon.json(&["rollback", "g", "--to", "here", "--current", "staged"]);
    assert!(staged["rollback"]["current"]["name"].is_string(), "the current state was kept: {staged}");
    let _tick = daemon.next_tick();
    let _jumped = daemon.run(&["rollback", "g", "--to", "here", "--clock", "jump-to-now"]).ok();
    let _tick = daemon.next_tick();

    let console = daemon.run(&["console", "g"]).ok();
    assert!(console.stdout.contains("tick "), "what was said before, and what is said: {console:?}");

    assert_eq!(daemon.json(&["pause", "g"])["state"], "paused");
    let stood = daemon.last_tick(0);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(daemon.last_tick(0), stood);
    assert_eq!(daemon.json(&["resume", "g"])["state"], "running");

    let before = daemon.next_tick();
    let pid = worker(&daemon, "g");
    let daemon = Daemon::start(&daemon.kill());
    assert_eq!(worker(&daemon, "g"), pid, "the same process");
    assert!(daemon.next_tick() >= before, "the guest went on without the daemon");
    let _checkpoint = daemon.json(&["checkpoint", "g", "--label", "found"]);

    kill(pid, Signal::SIGKILL).unwrap();
    wait_until("the daemon to notice", Duration::from_secs(20), || {
        daemon.json(&["show", "g"])["state"] == "gone"
    });
    let back = daemon.json(&["rollback", "g", "--to", "found", "--verify-image"]);
    assert_eq!(
        (&back["rollback"]["new_process"], &back["rollback"]["image_matches"]),
        (&true.into(), &true.into())
    );
    let _tick = daemon.next_tick();
    assert_ne!(worker(&daemon, "g"), pid);
    let _ended = daemon.run(&["stop", "g"]).ok();
    assert_eq!(daemon.json(&["show", "g"])["state"], "gone");
    assert!(!daemon.runtime_dir().join("worker").exists());
    assert!(here["name"].is_string());
}
