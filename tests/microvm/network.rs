//! Machines of the daemon that talk to each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use retrovisor_tests::{Daemon, GuestImage, wait_until};

use crate::lab;

const CLIENT_ADDRESS: &str = "02:00:5e:10:00:07";

fn run(daemon: &Daemon, image: &GuestImage, name: &str, net: &str, append: &str) {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let append = format!("console=ttyS0 quiet panic=-1 {} {append}", lab::append());
    let (kernel, initrd) = (path(&image.kernel), path(&image.initrd));
    let arguments = [
        "run", name, "--driver", "kvm", "--kernel", &kernel, "--initrd", &initrd, "--memory", "256M",
        "--every", "2s", "--append", &append, "--net", net,
    ];
    let _ran = daemon.run(&arguments).ok();
}

/// What the guest of that name said.
fn console(store: &Path, name: &str) -> String {
    let said = std::fs::read(store.join("machines").join(name).join("console.log")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(!said.contains("CORRUPT"), "a file arrived damaged:\n{said}");
    said
}

/// Waits until the client has fetched some more files, whole.
fn wait_fetched(store: &Path, more: usize) {
    let fetched = || {
        let said = console(store, "h");
        said.lines().filter(|line| line.starts_with("net ") && line.trim_end().ends_with(" ok")).count()
    };
    let before = fetched();
    wait_until("files to be fetched", Duration::from_mins(1), || fetched() >= before + more);
}

fn interface(daemon: &Daemon, name: &str) -> serde_json::Value {
    daemon.json(&["show", name])["interfaces"][0].clone()
}

#[test]
fn two_microvms_on_a_hub_talk_through_a_dead_daemon_and_a_dead_worker() {
    if !lab::boots_here() {
        return;
    }
    let Some(image) = GuestImage::files() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store: PathBuf = dir.path().to_owned();
    let daemon = Daemon::start(&store);
    let refused = daemon.run(&["run", "q", "--driver", "qemu", "--kernel", "k", "--net", "lan"]);
    assert!(refused.stderr.contains("only microVMs have"), "{refused:?}");
    let refused = daemon.run(&["run", "q", "--driver", "kvm", "--kernel", "k", "--net", "../lan"]);
    assert!(refused.stderr.contains("cannot name a hub"), "{refused:?}");

    run(&daemon, &image, "g", "lan", "net=10.9.0.1/24");
    run(&daemon, &image, "h", &format!("lan,mac={CLIENT_ADDRESS}"), "net=10.9.0.2/24 fetch=10.9.0.1");
    wait_fetched(&store, 3);
    let shown = interface(&daemon, "h");
    assert_eq!((&shown["hub"], &shown["address"]), (&"lan".into(), &CLIENT_ADDRESS.into()), "{shown}");
    assert_eq!(shown["link_up"], true, "{shown}");
    let text = daemon.run(&["show", "h"]).ok().stdout;
    assert!(text.contains(&format!("hub lan, {CLIENT_ADDRESS}, link up")), "{text}");

    // The control channel.
    let injected = daemon.run(&["inject", "g", "command", "echo in''jected >/dev/ttyS0"]).ok();
    assert!(injected.stdout.contains("was typed"), "{injected:?}");
    wait_until("the command", Duration::from_secs(10), || console(&store, "g").contains("injected"));

    let _checkpoint = daemon.json(&["checkpoint", "h", "--label", "here"]);
    wait_fetched(&store, 1);
    let _went = daemon.json(&["rollback", "h", "--to", "here"]);
    wait_fetched(&store, 2);

    // The hub goes with the daemon that serves it.
    let dead = daemon.kill();
    std::thread::sleep(Duration::from_secs(1));
    let daemon = Daemon::start(&dead);
    wait_fetched(&store, 3);
    wait_until("the link", Duration::from_secs(10), || interface(&daemon, "h")["link_up"] == true);

    // A new process has the same networks.
    let _checkpoint = daemon.json(&["checkpoint", "g", "--label", "served"]);
    let stream = std::os::unix::net::UnixStream::connect(store.join("machines/g/console")).unwrap();
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).unwrap();
    kill(Pid::from_raw(peer.pid()), Signal::SIGKILL).unwrap();
    wait_until("the daemon to notice", Duration::from_secs(20), || {
        daemon.json(&["show", "g"])["state"] == "gone"
    });
    assert_eq!(interface(&daemon, "g")["link_up"], false);
    let back = daemon.json(&["rollback", "g", "--to", "served"]);
    assert_eq!(back["rollback"]["new_process"], true, "{back}");
    wait_fetched(&store, 3);
    for name in ["g", "h"] {
        let _ended = daemon.run(&["stop", name]).ok();
        let said = console(&store, name);
        for complaint in ["BUG:", "WARNING:", "lockup", "Oops"] {
            assert!(!said.contains(complaint), "{complaint}:\n{said}");
        }
    }
}
