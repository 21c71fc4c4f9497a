//! A second machine from a checkpoint of a first.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use retrovisor_tests::{Daemon, GuestImage, wait_until};
use serde_json::Value;

use crate::lab;
use crate::service::worker;

/// The frame of the generation identifier.
const GENERATION_GFN: u64 = 0xdf;

/// The contents of the identifier's page since the machine's newest change of it.
fn identifier(daemon: &Daemon, machine: &str) -> Value {
    let sql = format!(
        "SELECT content FROM v_page_history WHERE machine = '{machine}' AND gfn = {GENERATION_GFN} \
         ORDER BY sequence DESC LIMIT 1"
    );
    let answer = daemon.json(&["query", &sql]);
    assert!(answer.to_string().contains("content"), "{answer}");
    answer
}

#[test]
fn a_branch_and_its_origin_go_on_side_by_side() {
    if !lab::boots_here() {
        return;
    }
    let Some(image) = GuestImage::files() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest_under("kvm", &image, "0");
    let _tick = daemon.next_tick();
    let here = daemon.json(&["checkpoint", "g", "--label", "here"]);
    let later = daemon.next_tick();

    let plan = daemon.json(&["branch", "g", "h", "--dry-run"]);
    assert_eq!((&plan["dry_run"], &plan["origin"]["label"]), (&true.into(), &"here".into()), "{plan}");
    assert!(plan["disks"][0]["base"].as_str().unwrap().ends_with("disk.raw"), "{plan}");
    assert_eq!(daemon.run(&["show", "h"]).code, 3, "nothing was done");
    assert_eq!(daemon.run(&["branch", "nobody", "h"]).code, 3);
    assert_eq!(daemon.run(&["branch", "g", "h", "--at", "nowhere"]).code, 3);
    assert_ne!(daemon.run(&["branch", "g", "g"]).code, 0);

    let pid = worker(&daemon, "g");
    let made = daemon.json(&["branch", "g", "h", "--paused"]);
    println!("a branch stood ready after {} us", made["branch_us"]);
    assert_eq!(made["branch"]["state"], "paused");
    assert_eq!(made["branch"]["branched_from"]["checkpoint"], here["name"]);
    // It was neither read nor stored a second time.
    assert!(made["first"]["dirty_pages"].as_u64().unwrap() < 100, "{made}");
    assert!(made["first"]["stored_bytes"].as_u64().unwrap() < 1 << 20, "{made}");
    assert_ne!(identifier(&daemon, "g"), identifier(&daemon, "h"));
    let same = daemon.json(&["rollback", "h", "--to", "@1", "--verify-image"]);
    assert_eq!(
        same["rollback"]["image_matches"], true,
        "its memory is what its first checkpoint says: {same}"
    );
    assert_eq!(worker(&daemon, "g"), pid);
    assert!(daemon.next_tick() > later, "the origin goes on");

    assert_eq!(daemon.json(&["resume", "h"])["state"], "running");
    wait_until("the branch's first tick", Duration::from_secs(30), || daemon.last_tick_of("h", 0).is_some());
    assert!(daemon.next_tick_of("h") <= later + 40, "it goes on from where it branched off");
    let _tick = daemon.next_tick();
    let there = daemon.json(&["checkpoint", "h", "--label", "there"]);
    assert!(there["dirty_pages"].as_u64().unwrap() > 0, "{there}");

    // Its worker dies; it comes back from its own checkpoints, and nobody else notices.
    kill(worker(&daemon, "h"), Signal::SIGKILL).unwrap();
    wait_until("the daemon to notice", Duration::from_secs(20), || {
        daemon.json(&["show", "h"])["state"] == "gone"
    });
    let back = daemon.json(&["rollback", "h", "--to", "there"]);
    assert_eq!(back["rollback"]["new_process"], true, "{back}");
    let _tick = daemon.next_tick_of("h");
    let _tick = daemon.next_tick();
    let _ended = daemon.run(&["stop", "h"]).ok();
    assert_eq!(daemon.json(&["show", "g"])["state"], "running");
    let log = daemon.run(&["log", "h"]).ok();
    assert!(log.stdout.contains("a branch of g"), "{log:?}");
}
