//! Attaching to a running QEMU.

use retrovisor_guest::{Machine, MachineError, MemoryIo as _, PageSet, RunState};
use retrovisor_machine::qemu::{AttachConfig, QemuMachine};

use crate::guest::{self, capture, config, console, image, restore, ticks, wait_console};
use crate::sleep_ms;

#[test]
fn a_detached_machine_is_attached_again() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let detached = retrovisor_machine::qemu::LaunchConfig { detached: true, ..config(&image, dir.path()) };
    let mut machine = QemuMachine::launch(&detached).unwrap();
    wait_console(&machine, 0, "tick 00010");
    let checkpoint = capture(&mut machine, Vec::new());
    machine.resume().unwrap();
    let (pid, finder) = (machine.pid(), machine.finder().0.to_owned());
    let again =
        AttachConfig { name: "again".into(), qmp: dir.path().join("qmp"), runtime_dir: dir.path().into() };
    // The second try finds the queue filled by the first one.
    for _ in 0..3 {
        let error = QemuMachine::attach(&again).err().unwrap();
        assert!(error.to_string().contains("one program at a time"), "{error}");
    }
    let error = QemuMachine::launch(&detached).err().unwrap();
    assert!(error.to_string().contains("runs in"), "{error}");
    drop(machine);

    let mut machine = QemuMachine::attach(&again).unwrap();
    assert_eq!((machine.pid(), machine.finder().0), (pid, &finder[..]));
    assert_eq!(machine.run_state(), RunState::Running);
    let layout = machine.identity().layout.clone();
    let mut dirty = PageSet::empty(&layout);
    machine.take_dirty(&mut dirty).unwrap();
    assert_eq!(dirty, PageSet::full(&layout));
    restore(&mut machine, &checkpoint);
    let from = console(&machine).len();
    machine.resume().unwrap();
    wait_console(&machine, from, "tick ");
    ticks(&console(&machine));
    machine.quit();
    assert!(!dir.path().join("qmp").exists());
}

/// A QEMU as other programs start it. Ended when dropped.
struct Foreign(std::process::Child, std::path::PathBuf);

impl Foreign {
    fn start(dir: &std::path::Path, arguments: &[&str]) -> Self {
        let qmp = dir.join("foreign-qmp");
        let _ = std::fs::remove_file(&qmp);
        let child = std::process::Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", qmp.display()))
            .args(arguments)
            .spawn()
            .unwrap();
        while std::os::unix::net::UnixStream::connect(&qmp).is_err() {
            sleep_ms(10);
        }
        Self(child, qmp)
    }

    fn attach(&self) -> Result<QemuMachine, MachineError> {
        let runtime_dir = self.1.parent().unwrap().into();
        QemuMachine::attach(&AttachConfig { name: "foreign".into(), qmp: self.1.clone(), runtime_dir })
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_qemu_of_others_is_taken_over_by_comparing_or_refused_with_the_way_out() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let kernel = image.join("vmlinuz").display().to_string();
    let initrd = image.join("initramfs.cpio.gz").display().to_string();
    let serial = format!("file:{}", dir.path().join("console.log").display());
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let memory =
        format!("memory-backend-file,id=mem0,size=256M,mem-path={}/ram,share=on", memory.path().display());
    let guest = [
        "-kernel",
        &kernel,
        "-initrd",
        &initrd,
        "-append",
        "console=ttyS0 quiet",
        "-serial",
        &serial,
        "-m",
        "256M",
    ];
    let shared = ["-object", &memory, "-machine", "q35,memory-backend=mem0", "-cpu", "max"];

    let foreign = Foreign::start(dir.path(), &[&guest[..], &shared].concat());
    let mut machine = foreign.attach().unwrap();
    assert_eq!((machine.finder().0, machine.run_state()), ("compare", RunState::Paused));
    assert_eq!(machine.identity().layout.bytes(), 256 << 20);
    machine.resume().unwrap();
    wait_console(&machine, 0, "tick 00010");
    let first = capture(&mut machine, Vec::new());
    machine.resume().unwrap();
    sleep_ms(500);
    let second = capture(&mut machine, first.memory.clone());
    assert!(guest::differing(machine.memory(), &second.memory).is_empty());
    assert!(second.dirty > 0 && second.dirty < 30_000, "{}", second.dirty);
    let from = console(&machine).len();
    restore(&mut machine, &first);
    machine.resume().unwrap();
    wait_console(&machine, from, "tick ");
    ticks(&console(&machine));
    // Dropping the machine leaves the guest running.
    drop(machine);
    assert_eq!(foreign.attach().unwrap().run_state(), RunState::Running);
    drop(foreign);

    let error = Foreign::start(dir.path(), &guest).attach().err().unwrap();
    assert!(error.to_string().contains("share=on"), "{error}");
    let private = memory.replace(",share=on", "");
    let private = ["-object", &private, "-machine", "q35,memory-backend=mem0"];
    let error = Foreign::start(dir.path(), &[&guest[..], &private].concat()).attach().err().unwrap();
    assert!(
        matches!(error, MachineError::Unsupported { .. }) && error.to_string().contains("not shared"),
        "{error}"
    );
    let raw = dir.path().join("disk.raw");
    std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
    let raw = format!("file={},format=raw,if=virtio", raw.display());
    let error = Foreign::start(dir.path(), &[&guest[..], &shared, &["-drive", &raw]].concat())
        .attach()
        .err()
        .unwrap();
    assert!(error.to_string().contains("qemu-img create"), "{error}");
    let absent =
        AttachConfig { name: "x".into(), qmp: dir.path().join("absent"), runtime_dir: dir.path().into() };
    let error = QemuMachine::attach(&absent).err().unwrap();
    assert!(error.to_string().contains("Is QEMU running?"), "{error}");
}
