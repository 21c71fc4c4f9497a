//! Write protection that is registered in a QEMU which another program started, and removed from it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use retrovisor_guest::{Machine as _, MemoryIo as _, PageSet, RunState};
use retrovisor_machine::qemu::{AttachConfig, QemuMachine};
use retrovisor_scripted::KnownFrames;

use crate::foreign::{Owner, wait_console_file};
use crate::guest::{capture, differing, image, restore, ticks};
use crate::sleep_ms;

/// A QEMU that is no child of this process, with two monitors. Ended when dropped.
struct Daemon {
    pid: Pid,
    dir: PathBuf,
    _memory: tempfile::TempDir,
}

impl Daemon {
    fn start(dir: &Path, image: &Path, options: &[&str]) -> Self {
        let path = |name: &str| dir.join(name).display().to_string();
        let monitor = |name: &str| format!("unix:{},server=on,wait=off", path(name));
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let ram = memory.path().join("ram").display().to_string();
        let ram = format!("memory-backend-file,id=ram,size=256M,mem-path={ram},share=on");
        let kernel = image.join("vmlinuz").display().to_string();
        let initrd = image.join("initramfs.cpio.gz").display().to_string();
        let started = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-cpu", "max", "-m", "256M"])
            .args(["-object", &ram, "-machine", "q35,memory-backend=ram", "-action", "shutdown=pause"])
            .args(["-kernel", &kernel, "-initrd", &initrd, "-append", "console=ttyS0 quiet tsc=unstable"])
            .args(["-serial", &format!("file:{}", path("console.log"))])
            .args(["-qmp", &monitor("qmp"), "-qmp", &monitor("owner")])
            .args(["-daemonize", "-pidfile", &path("pid")])
            .args(options)
            .status();
        assert!(started.unwrap().success());
        let pid = std::fs::read_to_string(dir.join("pid")).unwrap().trim().parse().unwrap();
        Self { pid: Pid::from_raw(pid), dir: dir.to_owned(), _memory: memory }
    }

    fn attach(&self) -> QemuMachine {
        let qmp = self.dir.join("qmp");
        // A client that went away is noticed by QEMU a moment later.
        for _ in 0..100 {
            let config =
                AttachConfig { name: "daemon".into(), qmp: qmp.clone(), runtime_dir: self.dir.clone() };
            match QemuMachine::attach(&config) {
                Ok(machine) => return machine,
                Err(error) => eprintln!("{error}"),
            }
            sleep_ms(50);
        }
        panic!("QEMU is never free");
    }

    /// How many descriptors of userfaultfd QEMU has.
    fn registrations(&self) -> usize {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        targets.filter(|target| target.as_os_str() == "anon_inode:[userfaultfd]").count()
    }

    /// The main thread's answers and the guest's ticks prove that both continue.
    fn goes_on(&self) {
        let mut owner = Owner::open(UnixStream::connect(self.dir.join("owner")).unwrap());
        assert_eq!(owner.run("query-status", &serde_json::json!({}))["running"], true);
        let text = || std::fs::read_to_string(self.dir.join("console.log")).unwrap_or_default();
        let before = ticks(&text()).len();
        let began = std::time::Instant::now();
        while ticks(&text()).len() <= before {
            assert!(began.elapsed() < std::time::Duration::from_mins(1), "the guest does not tick");
            sleep_ms(50);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// Whether this host permits it; prints a message if not.
fn is_protected(machine: &QemuMachine) -> bool {
    let (finder, reason) = machine.finder();
    eprintln!("{finder}: {reason}");
    let forbidden = ["not permitted", "6.7", "no permission", "filtered"];
    if finder != "userfaultfd" && forbidden.iter().any(|why| reason.contains(why)) {
        eprintln!("SKIPPED: {reason}");
        return false;
    }
    assert_eq!(finder, "userfaultfd", "{reason}");
    true
}

#[test]
fn a_qemu_that_runs_is_put_under_write_protection_and_released() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let qemu = Daemon::start(dir.path(), &image, &[]);
    wait_console_file(&qemu.dir, "tick 00010");
    let mut machine = qemu.attach();
    if !is_protected(&machine) {
        return;
    }
    assert_eq!(qemu.registrations(), 1);
    qemu.goes_on();

    // A frame that was read or written stays unchanged until it is reported: while the guest runs, in pauses, and over
    // rollbacks.
    let layout = machine.identity().layout.clone();
    let mut known = KnownFrames::new(&layout);
    let first = capture(&mut machine, Vec::new());
    for round in 0..12 {
        machine.resume().unwrap();
        for gfn in layout.gfns().skip(round).step_by(7) {
            known.read(machine.memory(), gfn).unwrap();
        }
        sleep_ms(100);
        if round % 4 == 3 {
            machine.pause().unwrap();
            let wrong = differing(machine.memory(), &first.memory);
            restore(&mut machine, &first);
            for gfn in wrong {
                known.read(machine.memory(), gfn).unwrap();
            }
            machine.resume().unwrap();
            sleep_ms(100);
        }
        machine.pause().unwrap();
        let mut dirty = PageSet::empty(&layout);
        machine.take_dirty(&mut dirty).unwrap();
        assert!(!dirty.is_empty() && dirty.len() < layout.pages() / 2, "{}", dirty.len());
        known.reported(&dirty);
        assert_eq!(known.wrong(machine.memory()).unwrap(), []);
    }
    machine.resume().unwrap();

    // A program that ends without `detach`, or is killed, leaves the protection behind, and the next one uses it.
    drop(machine);
    assert_eq!(qemu.registrations(), 1);
    qemu.goes_on();
    let machine = qemu.attach();
    assert_eq!((machine.finder().0, qemu.registrations()), ("userfaultfd", 1));
    machine.detach(true).unwrap();
    assert_eq!(qemu.registrations(), 0);
    qemu.goes_on();

    // Repeated while the guest runs: each interrupted call is continued.
    for _ in 0..20 {
        let machine = qemu.attach();
        assert!(is_protected(&machine));
        machine.detach(true).unwrap();
    }
    assert_eq!(qemu.registrations(), 0);
    qemu.goes_on();

    // A QEMU that its owner stopped stays stopped.
    let mut machine = qemu.attach();
    assert_eq!(machine.run_state(), RunState::Running);
    machine.pause().unwrap();
    machine.detach(true).unwrap();
    let mut machine = qemu.attach();
    assert_eq!((machine.finder().0, machine.run_state()), ("userfaultfd", RunState::Paused));
}

#[test]
fn a_qemu_with_a_filter_of_system_calls_is_compared() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let qemu = Daemon::start(dir.path(), &image, &["-sandbox", "on"]);
    wait_console_file(&qemu.dir, "tick 00010");
    let machine = qemu.attach();
    let (finder, reason) = machine.finder();
    assert_eq!(finder, "compare");
    assert!(reason.contains("-sandbox") || reason.contains("6.7"), "{reason}");
    machine.detach(true).unwrap();
    assert_eq!(qemu.registrations(), 0);
    qemu.goes_on();
}

#[test]
fn a_qemu_that_another_program_traces_is_compared() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let qemu = Daemon::start(dir.path(), &image, &[]);
    wait_console_file(&qemu.dir, "tick 00010");
    let (attached, wait_attached) = std::sync::mpsc::channel();
    let (end, wait_end) = std::sync::mpsc::channel::<()>();
    let pid = qemu.pid;
    // Ended with its thread.
    let tracer = std::thread::spawn(move || {
        let seized = nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty());
        attached.send(seized.is_ok()).unwrap();
        let _ = wait_end.recv();
    });
    if wait_attached.recv().unwrap() {
        let machine = qemu.attach();
        let (finder, reason) = machine.finder();
        assert_eq!(finder, "compare");
        assert!(reason.contains("is tracing") || reason.contains("6.7"), "{reason}");
    } else {
        eprintln!("SKIPPED: processes cannot be traced here");
    }
    drop(end);
    tracer.join().unwrap();
    qemu.goes_on();
}
