//! Killing the tool at any moment leaves a store that opens and verifies.

use std::process::Command;
use std::time::Duration;

use retrovisor_tests::{Daemon, GuestImage, retrovisor};

/// How many states of a disk are kept in its overlay.
const KEPT: usize = 64;

#[test]
fn a_daemon_killed_at_any_moment_leaves_a_whole_store() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "50ms");
    let mut before = 0;
    for round in 0..6_u64 {
        // Different phases of checkpoints and rollbacks, the same ones in every run of the test.
        std::thread::sleep(Duration::from_millis(700 + round * 37));
        if round % 2 == 1 {
            let store = store.path().to_owned();
            let going = std::thread::spawn(move || retrovisor(&store, &["rollback", "g", "--to", "-3"]));
            std::thread::sleep(Duration::from_millis(5 * round));
            let dir = daemon.kill();
            let _cut_off = going.join().unwrap();
            daemon = check(&dir, &mut before);
        } else {
            let dir = daemon.kill();
            daemon = check(&dir, &mut before);
        }
        let went = daemon.json(&["rollback", "g", "--to", "-1", "--verify-image"]);
        assert_eq!(went["rollback"]["image_matches"], true, "round {round}");
        let _tick = daemon.next_tick();
    }
    // Disk snapshots of the killed daemons that no checkpoint refers to are gone; the others are there.
    let paused = daemon.json(&["pause", "g"]);
    let listed = Command::new("qemu-img")
        .args(["snapshot", "-U", "-l"])
        .arg(daemon.runtime_dir().join("disks/d0.qcow2"))
        .output()
        .expect("qemu-img runs");
    let kept = String::from_utf8_lossy(&listed.stdout).matches(" rv-").count();
    let checkpoints = usize::try_from(paused["checkpoints"].as_u64().unwrap()).unwrap();
    // Blocks of older ones are in the store; the newest state waits for the next turn to be counted.
    assert!((KEPT.min(checkpoints)..=KEPT + 1).contains(&kept), "{kept} of {checkpoints}: {listed:?}");
}

/// Verifies the store without a daemon, checks that nothing committed was lost, and starts a daemon again.
fn check(dir: &std::path::Path, before: &mut u64) -> Daemon {
    let report = retrovisor(dir, &["verify", "--json"]).ok().json();
    assert_eq!(report["damaged"], serde_json::json!([]));
    let checkpoints = report["checkpoints"].as_u64().unwrap();
    assert!(checkpoints >= *before, "{checkpoints} < {before}");
    *before = checkpoints;
    Daemon::start(dir)
}
