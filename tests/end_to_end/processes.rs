//! Processes and names: what starts, stops, fails and is removed leaves nothing.

use std::time::{Duration, Instant};

use retrovisor_tests::{Daemon, GuestImage, defunct_children, qemus_in, retrovisor, wait_until};

#[test]
fn nothing_of_a_machine_is_left_by_a_failure_a_stop_or_a_removal() {
    let Some(mut image) = GuestImage::find() else { return };
    let (store, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A disk that can go missing.
    let disk = files.path().join("disk.raw");
    let _bytes = std::fs::copy(&image.disk, &disk).unwrap();
    image.disk.clone_from(&disk);
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "300ms");
    let processes = || qemus_in(&daemon.runtime_dir());
    let _made = daemon.json(&["checkpoint", "g", "--label", "a"]);
    slow_shell(&daemon);

    // Stopped: the process is gone and waited for.
    let refused = daemon.run(&["remove", "g", "--yes"]);
    assert!(refused.code == 4 && refused.stderr.contains("retrovisor stop g"), "{refused:#?}");
    let _stopped = daemon.run(&["stop", "g"]).ok();
    assert_eq!(daemon.state("g"), "gone");
    assert!(processes().is_empty(), "{:?}", processes());
    assert_eq!(defunct_children(daemon.pid()), [""; 0]);

    // Another shape under its name is refused before anything is started or written.
    let shown = daemon.json(&["show", "g"]);
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (kernel, initrd, disk_name) = (path(&image.kernel), path(&image.initrd), path(&disk));
    let run =
        ["run", "g", "--driver", "qemu", "--kernel", &kernel, "--initrd", &initrd, "--disk", &disk_name];
    for other in [["--vcpus", "1"], ["--memory", "256M"]] {
        let refused = daemon.run(&[&run[..], &other].concat());
        assert!(refused.code == 4 && refused.stderr.contains("another name"), "{other:?}: {refused:#?}");
        assert!(processes().is_empty(), "{other:?}");
        assert_eq!(daemon.json(&["show", "g"]), shown, "{other:?}");
    }

    // A restore and a start that fail: no process, no name, no changed way to start.
    let away = files.path().join("away.raw");
    std::fs::rename(&disk, &away).unwrap();
    let failed = daemon.run(&["rollback", "g", "--to", "a"]);
    assert!(failed.code != 0 && failed.stderr.contains("disk.raw"), "{failed:#?}");
    let failed = daemon.run(&[&["run", "h"][..], &run[2..]].concat());
    assert!(failed.code != 0 && failed.stderr.contains("disk.raw"), "{failed:#?}");
    std::fs::rename(&away, &disk).unwrap();
    assert!(qemus_in(store.path()).is_empty());
    assert_eq!(defunct_children(daemon.pid()), [""; 0]);
    assert_eq!(daemon.json(&["list"]).as_array().unwrap().len(), 1);
    let back = daemon.json(&["rollback", "g", "--to", "a", "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true, "{back:#}");
    let _tick = daemon.next_tick();

    // The process ends by itself: it is waited for as well.
    nix::sys::signal::kill(processes()[0], nix::sys::signal::Signal::SIGKILL).unwrap();
    daemon.wait_for("g", "gone");
    wait_until("the end to be read", Duration::from_secs(10), || defunct_children(daemon.pid()).is_empty());

    // Removed, and the name is free, also for a store without a daemon.
    let refused = daemon.run(&["remove", "g"]);
    assert!(refused.code == 4 && refused.stderr.contains("--yes"), "{refused:#?}");
    let plan = daemon.json(&["remove", "g", "--dry-run"]);
    assert!(plan["checkpoints"].as_u64().unwrap() > 0, "{plan:#}");
    assert_eq!(daemon.json(&["list"]).as_array().unwrap().len(), 1, "a plan changes nothing");
    let _removed = daemon.json(&["remove", "g", "--yes"]);
    assert_eq!(daemon.json(&["list"]), serde_json::json!([]));
    assert!(!daemon.runtime_dir().exists());
    let _ran = daemon.run(&[&run[..], &["--memory", "256M"]].concat()).ok();
    let _stopped = daemon.run(&["stop", "g", "--force"]).ok();
    drop(daemon);
    let _removed = retrovisor(store.path(), &["remove", "g", "--yes"]).ok();
    assert_eq!(retrovisor(store.path(), &["list", "--json"]).ok().json(), serde_json::json!([]));
}

/// A control shell that is busy and says a byte now and then: `inject` has one deadline, and holds nobody else.
fn slow_shell(daemon: &Daemon) {
    let busy = daemon.send("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo -n x; sleep 1; done");
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let injected = scope.spawn(|| daemon.run(&["inject", "g", "command", "true"]));
        let asked = Instant::now();
        let _made = daemon.json(&["checkpoint", "g"]);
        let _paused = daemon.json(&["pause", "g"]);
        let _resumed = daemon.json(&["resume", "g"]);
        assert!(asked.elapsed() < Duration::from_secs(4), "other commands wait: {:?}", asked.elapsed());
        let injected = injected.join().unwrap();
        assert!(injected.code == 4 && injected.stderr.contains("no shell of the guest"), "{injected:#?}");
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(busy);
}
