//! Checkpoints go, their space comes back, and what stays can be restored.

use std::time::Duration;

use retrovisor_tests::{Daemon, GuestImage, retrovisor, wait_until};

#[test]
fn a_store_is_pruned_while_its_guest_runs_and_when_nobody_runs() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "200ms");
    let made = daemon.json(&["checkpoint", "g", "--label", "precious"]);
    let pinned = daemon.json(&["checkpoint", "g"]);
    let pinned = pinned["name"].as_str().unwrap().to_owned();
    let again = daemon.run(&["pin", "g", &pinned]).ok();
    assert!(again.stdout.contains(&format!("retrovisor unpin g {pinned}")), "{}", again.stdout);
    let count = || daemon.json(&["log", "g", "--newest", "0"]).as_array().unwrap().len();
    wait_until("twenty checkpoints", Duration::from_mins(1), || count() >= 20);

    let few =
        ["prune", "g", "--keep-last", "3", "--keep-hourly", "0", "--keep-daily", "0", "--keep-weekly", "0"];
    let few = [&few[..], &["--keep-monthly", "0", "--undo-depth", "0"]].concat();
    let refused = daemon.run(&few);
    assert_eq!(refused.code, 4, "{refused:#?}");
    assert!(refused.stderr.contains("--dry-run") && refused.stderr.contains("--yes"), "{refused:#?}");
    let before = count();
    let plan = daemon.json(&[&few[..], &["--dry-run"]].concat());
    let goes = plan["machines"][0]["removed"].as_array().unwrap().len();
    assert!(goes >= 10, "{plan:#}");
    assert!(count() >= before, "a plan changes nothing");

    let report = daemon.json(&[&few[..], &["--yes"]].concat());
    assert!(report["checkpoints"].as_u64().unwrap() >= goes as u64, "{report:#}");
    assert!(report["stored_bytes"].as_u64() < report["stored_bytes_before"].as_u64(), "{report:#}");
    let log = daemon.json(&["log", "g", "--newest", "0"]);
    let has = |name: &str| log.as_array().unwrap().iter().any(|made| made["name"] == name);
    assert!(has(&pinned) && has(made["name"].as_str().unwrap()), "labels and pins stay: {log:#}");

    // Through what was pruned back to what stays, the guest running all the while.
    let went = daemon.json(&["rollback", "g", "--to", "precious", "--verify-image"]);
    assert_eq!(went["rollback"]["image_matches"], true, "{went:#}");
    let _tick = daemon.next_tick();
    // On a busy machine none may have been taken since.
    for _ in 0..12 {
        let _more = daemon.json(&["checkpoint", "g"]);
    }
    let _stopped = daemon.run(&["stop", "g"]).ok();
    drop(daemon);

    let report = retrovisor(store.path(), &[&few[..], &["--yes", "--json"]].concat()).ok().json();
    assert!(report["checkpoints"].as_u64().unwrap() > 0, "{report:#}");
    // What is left can be carried elsewhere, and read there.
    let core = store.path().join("g.core");
    let core = core.to_str().unwrap();
    let exported = retrovisor(store.path(), &["export", "g", core, "--at", "precious", "--json"]).ok().json();
    assert_eq!(exported["vmcoreinfo"], true, "{exported:#}");
    let elsewhere = tempfile::tempdir().unwrap();
    drop(Daemon::start(elsewhere.path()));
    let imported = retrovisor(elsewhere.path(), &["import", "h", core, "--json"]).ok().json();
    assert_eq!(imported["reason"], "", "{imported:#}");
    let tasks = |dir: &std::path::Path, name: &str, at: &str| {
        let answer = retrovisor(dir, &["inspect", name, "tasks", "--at", at, "--json"]).ok().json();
        answer["tables"].clone()
    };
    let (there, here) = (tasks(store.path(), "g", "precious"), tasks(elsewhere.path(), "h", "latest"));
    assert!(there.to_string().contains("workload"), "{there:#}");
    assert_eq!(there, here, "the same memory tells the same");
    let again = retrovisor(elsewhere.path(), &["import", "h", core]);
    assert_eq!(again.code, 4, "{again:#?}");

    let archive = store.path().join("g.rv");
    let archive = archive.to_str().unwrap();
    let _written = retrovisor(store.path(), &["export", "g", archive, "--format", "archive"]).ok();
    let moved = retrovisor(elsewhere.path(), &["import", "g", archive, "--json"]).ok().json();
    let log = |dir: &std::path::Path| retrovisor(dir, &["log", "g", "--newest", "0", "--json"]).ok().json();
    assert_eq!(moved["checkpoints"].as_u64(), log(store.path()).as_array().map(|all| all.len() as u64));
    assert_eq!(tasks(elsewhere.path(), "g", "precious"), there);

    let verified = retrovisor(store.path(), &["verify", "--json"]).ok().json();
    assert_eq!(verified["damaged"].as_array().map(Vec::len), Some(0), "{verified:#}");
}
