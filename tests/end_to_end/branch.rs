//! A second machine from a checkpoint of a first.

use std::process::{Command, Stdio};
use std::time::Duration;

use retrovisor_tests::{Daemon, GuestImage, command_path, wait_until};

#[test]
fn a_branch_is_a_machine_of_its_own_and_one_cut_off_leaves_nothing() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "0");
    let here = daemon.json(&["checkpoint", "g", "--label", "here"]);
    let later = daemon.next_tick();

    let plan = daemon.run(&["branch", "g", "h", "--dry-run"]).ok();
    let words = plan.stdout.replace('\n', " ");
    assert!(words.contains("Nothing was changed") && words.contains("disk.raw"), "{plan:?}");
    assert_eq!(daemon.run(&["branch", "g", "h", "--at", "nowhere"]).code, 3);
    assert_eq!(daemon.run(&["branch", "nobody", "h"]).code, 3);

    // The daemon is killed in the middle.
    let mut branch = Command::new(command_path())
        .arg("--store")
        .arg(store.path())
        .args(["branch", "g", "h"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let monitor = daemon.machine_dir("h").join("qmp");
    wait_until("a process for the branch", Duration::from_secs(30), || monitor.exists());
    let daemon = Daemon::start(&daemon.kill());
    assert!(!branch.wait().unwrap().success());
    assert_eq!(daemon.run(&["show", "h"]).code, 3, "no machine is left");
    assert!(!monitor.exists(), "and no process");
    let _sound = daemon.run(&["verify"]).ok();

    let made = daemon.json(&["branch", "g", "h", "--at", "here"]);
    println!("a branch ran after {} us", made["branch_us"]);
    assert_eq!(made["branch"]["branched_from"]["checkpoint"], here["name"], "{made}");
    assert_eq!(made["first"]["sequence"], 1);
    wait_until("the branch's first tick", Duration::from_mins(1), || daemon.last_tick_of("h", 0).is_some());
    assert!(daemon.next_tick_of("h") <= later + 100, "it goes on from where it branched off");
    let _tick = daemon.next_tick();
    let again = daemon.run(&["branch", "g", "h"]);
    assert_ne!(again.code, 0);
    assert!(again.stderr.contains("already"), "{again:?}");

    // It has a past of its own, and can be branched, too.
    let there = daemon.json(&["checkpoint", "h", "--label", "there"]);
    assert!(there["dirty_pages"].as_u64().unwrap() > 0, "{there}");
    let back = daemon.json(&["rollback", "h", "--to", "@1", "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true, "{back}");
    let undone = daemon.json(&["undo", "h", "--verify-image"]);
    assert_eq!(undone["rollback"]["image_matches"], true, "{undone}");
    let _tick = daemon.next_tick_of("h");
    let third = daemon.json(&["branch", "h", "i", "--at", "there", "--paused"]);
    assert_eq!(third["branch"]["state"], "paused", "{third}");
    let _tick = daemon.next_tick();

    let log = daemon.run(&["log", "h"]).ok();
    assert!(log.stdout.contains("a branch of g"), "{log:?}");
    for name in ["i", "h"] {
        let _ended = daemon.run(&["stop", name]).ok();
    }
    let again = daemon.json(&["rollback", "h", "--to", "there"]);
    assert_eq!(again["rollback"]["new_process"], true, "{again}");
    let _tick = daemon.next_tick_of("h");
    assert_eq!(daemon.json(&["show", "g"])["state"], "running");
}
