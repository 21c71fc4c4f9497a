//! A worker that an ordinary user starts. Root becomes that user, in a mount namespace in which everybody may use
//! `/dev/kvm`; the host does not change.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::{major, minor};
use retrovisor_guest::Machine as _;
use retrovisor_machine::kvm::RemoteMachine;

use crate::{bare, confinement, worker};

/// The argument with which this program starts a machine and keeps it until its input ends.
const PARENT: &str = "machine-parent";
/// `nobody`.
const USER: u32 = 65_534;
/// Gives everybody in its mount namespace a `/dev/kvm`, becomes the user, and runs a program.
const BECOME: &str = r#"mount -t tmpfs none "$1" && mknod -m 666 "$1/kvm" c "$2" "$3" &&
    mount --bind "$1/kvm" /dev/kvm && shift 3 &&
    exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all "$@""#;

/// Runs before the test harness does.
pub(crate) fn become_parent() {
    let arguments: Vec<_> = std::env::args_os().collect();
    let [_, word, dir] = &arguments[..] else { return };
    if word != OsStr::new(PARENT) {
        return;
    }
    match RemoteMachine::launch(&worker::config(Path::new(dir), false)) {
        Ok(mut machine) => {
            machine.resume().unwrap();
            bare::wait_rounds(&machine, 2, 2);
            println!("pid {}", machine.pid());
            println!("done {}", machine.confinement().done.join(", "));
            println!("missing {:?}", machine.confinement().missing);
            println!("runs");
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        }
        Err(error) => {
            println!("{error}");
            std::process::exit(1);
        }
    }
}

#[test]
fn a_worker_of_an_ordinary_user_is_confined_all_the_same() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user; the other tests of workers ran as one");
        return;
    }
    let Ok(kvm) = std::fs::metadata("/dev/kvm") else {
        eprintln!("SKIPPED: there is no /dev/kvm");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (program, home, dev) = (dir.path().join("program"), dir.path().join("home"), dir.path().join("dev"));
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::create_dir(&home).unwrap();
    std::fs::create_dir(&dev).unwrap();
    std::os::unix::fs::chown(&home, Some(USER), Some(USER)).unwrap();
    let mut parent = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", BECOME, "sh"])
        .arg(&dev)
        .args([major(kvm.rdev()).to_string(), minor(kvm.rdev()).to_string()])
        .arg(&program)
        .arg(PARENT)
        .arg(&home)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(parent.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "runs" {
            break;
        }
        said.push(line);
    }
    let [pid, done, missing] = &said[..] else {
        let ended = parent.wait().unwrap();
        eprintln!("SKIPPED: no machine for an ordinary user here ({ended}): {}", said.join("\n"));
        return;
    };
    eprintln!("{done}\n{missing}");
    let pid: i32 = pid.strip_prefix("pid ").unwrap().parse().unwrap();
    let done: Vec<_> = done.strip_prefix("done ").unwrap().split(", ").collect();
    confinement::assert_threads_are_confined(pid);
    let users: Vec<u32> =
        worker::status(pid, "Uid").split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(users, [USER; 4]);
    if done.contains(&"user namespace") {
        let proc = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let map: Vec<_> = ["uid_map", "gid_map"].map(proc).iter().map(|map| numbers(map)).collect();
        assert_eq!(map, [[USER, USER, 1]; 2], "nobody but itself is in its namespace");
        assert_eq!(proc("setgroups").trim(), "deny");
        for (kind, what) in [
            ("user", "user namespace"),
            ("pid", "process namespace"),
            ("mnt", "mount namespace"),
            ("net", "network namespace"),
            ("ipc", "IPC namespace"),
            ("uts", "host name namespace"),
        ] {
            assert!(done.contains(&what), "no {what}, although there is a user namespace: {missing}");
            let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{kind}")).unwrap();
            assert_ne!(of("self"), of(&pid.to_string()), "{what}");
        }
        assert!(done.contains(&"empty root"), "{missing}");
        assert_eq!(std::fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0);
    } else {
        eprintln!("SKIPPED: this host gives ordinary users no namespaces: {missing}");
    }
    drop(parent.stdin.take());
    assert!(parent.wait().unwrap().success());
}

fn numbers(line: &str) -> Vec<u32> {
    line.split_whitespace().map(|number| number.parse().unwrap()).collect()
}
