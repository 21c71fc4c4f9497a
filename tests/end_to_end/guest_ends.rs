//! Guests that power themselves off, reboot and panic.

use std::time::Duration;

use retrovisor_tests::{Daemon, GuestImage, qemus_in, wait_until};

#[test]
fn a_guest_that_powers_itself_off_goes_back_in_place_and_one_that_reboots_has_a_new_baseline() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "300ms");
    let _made = daemon.json(&["checkpoint", "g", "--label", "alive"]);
    let halted = daemon.send("echo o >/proc/sysrq-trigger");
    daemon.wait_for("g", "powered off");
    drop(halted);
    let refused = daemon.run(&["checkpoint", "g"]);
    assert!(refused.code == 4 && refused.stderr.contains("retrovisor rollback g"), "{refused:#?}");
    // A restart of the daemon changes nothing.
    let daemon = Daemon::start(&daemon.kill());
    assert_eq!(daemon.state("g"), "powered off");
    let back = daemon.json(&["rollback", "g", "--to", "alive", "--verify-image"]);
    assert_eq!(
        (&back["rollback"]["image_matches"], &back["rollback"]["new_process"]),
        (&true.into(), &false.into())
    );
    assert_eq!(daemon.state("g"), "running");
    let _tick = daemon.next_tick();

    // It reboots: what is there after the boot is what later checkpoints are compared with.
    let before = daemon.console().len();
    let rebooting = daemon.send("echo b >/proc/sysrq-trigger");
    wait_until("the workload of the new boot", Duration::from_mins(2), || {
        daemon.last_tick(before).is_some() && daemon.console()[before..].contains("tick 00010 ")
    });
    drop(rebooting);
    daemon.wait_for_checkpoints("g", 12);
    let anomalies = daemon.json(&["anomalies", "g"]);
    let reasons = anomalies["checkpoints"].to_string();
    for false_alarm in ["idt", "hidden", "redirected", "text"] {
        assert!(!reasons.contains(false_alarm), "a reboot is taken for a rootkit: {anomalies:#}");
    }
    let back = daemon.json(&["rollback", "g", "--to", "alive", "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true, "over a boot, too");
    let _tick = daemon.next_tick();

    // Off again: `stop` ends the process.
    let halted = daemon.send("echo o >/proc/sysrq-trigger");
    daemon.wait_for("g", "powered off");
    drop(halted);
    let _stopped = daemon.run(&["stop", "g"]).ok();
    assert_eq!(daemon.state("g"), "gone");
    assert!(qemus_in(&daemon.runtime_dir()).is_empty());
}

#[test]
fn a_panic_is_a_verdict_and_the_way_back_is_before_it() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (kernel, initrd, disk) = (path(&image.kernel), path(&image.initrd), path(&image.disk));
    // A kernel that panics and stays so: no event tells.
    let append = "console=ttyS0 quiet panic=0";
    let run = ["run", "g", "--driver", "qemu", "--kernel", &kernel, "--initrd", &initrd, "--disk", &disk];
    let _ran =
        daemon.run(&[&run[..], &["--memory", "256M", "--every", "200ms", "--append", append]].concat()).ok();
    wait_until("the guest's first tick", Duration::from_mins(1), || daemon.last_tick(0).is_some());
    let verdicts = || {
        let log = daemon.json(&["log", "g", "--newest", "0"]);
        let entry = |one: &serde_json::Value| {
            (one["sequence"].as_u64().unwrap(), one["verdict"].as_str().unwrap_or_default().to_owned())
        };
        log.as_array().unwrap().iter().map(entry).collect::<Vec<_>>()
    };
    let is = |one: &(u64, String), word: &str| one.1.to_lowercase().ends_with(word);
    wait_until("a good checkpoint", Duration::from_mins(2), || verdicts().iter().any(|one| is(one, "good")));
    let newest = verdicts().iter().map(|one| one.0).max().unwrap();
    let crashed = daemon.send("echo c >/proc/sysrq-trigger");
    wait_until("a bad checkpoint", Duration::from_mins(1), || {
        verdicts().iter().any(|one| one.0 > newest && is(one, "bad"))
    });
    drop(crashed);
    daemon.wait_for_checkpoints("g", 3);
    let anomalies = daemon.json(&["anomalies", "g"]).to_string();
    assert!(anomalies.to_lowercase().contains("panic"), "{anomalies}");
    let first_bad =
        verdicts().iter().filter(|one| one.0 > newest && is(one, "bad")).map(|one| one.0).min().unwrap();
    let after: Vec<_> = verdicts().into_iter().filter(|one| one.0 > first_bad && is(one, "good")).collect();
    assert!(after.is_empty(), "checkpoints of a kernel that panicked are good: {after:?}");
    let back = daemon.json(&["rollback", "g", "--verify-image"]);
    let target = back["rollback"]["target"]["sequence"].as_u64().unwrap();
    assert!(target < first_bad, "the way back is a panicked state: {back:#}");
    let _tick = daemon.next_tick();
}

#[test]
fn a_guest_that_does_nothing_is_evaluated_for_long() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (kernel, initrd) = (path(&image.kernel), path(&image.initrd));
    let run = ["run", "g", "--driver", "qemu", "--kernel", &kernel, "--initrd", &initrd, "--memory", "128M"];
    let _ran = daemon.run(&[&run[..], &["--every", "100ms"]].concat()).ok();
    wait_until("the guest's first tick", Duration::from_mins(1), || daemon.last_tick(0).is_some());
    let _said = daemon.shell("killall housekeeper httpd syslogd klogd workload");
    daemon.wait_for_checkpoints("g", 110);
    let shown = daemon.json(&["show", "g"]);
    assert_eq!((&shown["state"], &shown["checkpoint_error"]), (&"running".into(), &"".into()));
    let log = daemon.json(&["log", "g", "--newest", "100"]).to_string();
    assert!(!log.contains("could not be evaluated") && !log.contains("NaN"), "{log}");
    let store = daemon.kill();
    let daemon = Daemon::start(&store);
    assert_eq!(daemon.state("g"), "running", "a daemon starts on that history");
    daemon.wait_for_checkpoints("g", 2);
}
