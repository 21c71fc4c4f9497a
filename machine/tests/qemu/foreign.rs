//! A QEMU that another program started and continues to use: its changes are detected, and this driver leaves nothing
//! behind in it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use retrovisor_guest::{
    ClockPolicy, DiskIo as _, GuestEvent, Machine as _, MachineError, MemoryIo as _, PageSet, RunState,
    StateIo as _,
};
use retrovisor_machine::qemu::{AttachConfig, QemuMachine};
use serde_json::{Value, json};

use crate::guest::image;
use crate::sleep_ms;

/// A QEMU with two monitors: the driver attaches to one, its owner keeps the other. Ended when dropped.
struct Qemu {
    child: Child,
    dir: PathBuf,
    _memory: tempfile::TempDir,
}

impl Qemu {
    fn start(dir: &Path, image: &Path) -> Self {
        let path = |name: &str| dir.join(name).display().to_string();
        let monitor = |name: &str| format!("unix:{},server=on,wait=off", path(name));
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let ram = memory.path().join("ram").display().to_string();
        let ram = format!("memory-backend-file,id=ram,size=256M,mem-path={ram},share=on");
        let disk = format!("file={},if=none,id=dd,format=qcow2", path("disk.qcow2"));
        let base = image.join("disk.raw").display().to_string();
        let create = ["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &path("disk.qcow2")];
        assert!(Command::new("qemu-img").args(create).status().unwrap().success());
        let kernel = image.join("vmlinuz").display().to_string();
        let initrd = image.join("initramfs.cpio.gz").display().to_string();
        let serial = format!("file:{}", path("console.log"));
        let child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-cpu", "max", "-m", "256M"])
            .args(["-object", &ram, "-machine", "q35,memory-backend=ram", "-action", "shutdown=pause"])
            .args(["-kernel", &kernel, "-initrd", &initrd, "-append", "console=ttyS0 quiet tsc=unstable"])
            .args(["-serial", &serial, "-drive", &disk, "-device", "virtio-blk-pci,drive=dd"])
            .args(["-device", "pcie-root-port,id=root0", "-device", "virtio-serial-pci"])
            .args(["-qmp", &monitor("qmp"), "-qmp", &monitor("owner")])
            .spawn()
            .unwrap();
        let mut qemu = Self { child, dir: dir.to_owned(), _memory: memory };
        while UnixStream::connect(dir.join("owner")).is_err() {
            assert!(qemu.child.try_wait().unwrap().is_none(), "QEMU ended before it listened");
            sleep_ms(10);
        }
        qemu
    }

    fn attach(&self) -> Result<QemuMachine, MachineError> {
        let qmp = self.dir.join("qmp");
        // Not the folder of the socket, which would be that of a QEMU that this project launched.
        let runtime_dir = self.dir.join("machine");
        QemuMachine::attach(&AttachConfig { name: "foreign".into(), qmp, runtime_dir })
    }

    fn owner(&self) -> Owner {
        Owner::open(UnixStream::connect(self.dir.join("owner")).unwrap())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The owner's connection to the second monitor.
pub(crate) struct Owner {
    stream: BufReader<UnixStream>,
    /// The names of the events that came.
    events: Vec<String>,
}

impl Owner {
    pub(crate) fn open(stream: UnixStream) -> Self {
        let mut owner = Self { stream: BufReader::new(stream), events: Vec::new() };
        owner.stream.read_line(&mut String::new()).unwrap();
        owner.run("qmp_capabilities", &json!({}));
        owner
    }

    pub(crate) fn run(&mut self, command: &str, arguments: &Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        loop {
            let answer = self.line();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(answer) = answer.get("return") {
                return answer.clone();
            }
        }
    }

    /// The next message; an event is kept.
    fn line(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.stream.read_line(&mut line).unwrap() > 0, "QEMU ended");
        let message: Value = serde_json::from_str(&line).unwrap();
        self.events.extend(message.get("event").and_then(Value::as_str).map(str::to_owned));
        message
    }

    /// Adds a device that needs no guest to be removed, calls `meanwhile`, removes it and waits for QEMU's event.
    fn plug_briefly(&mut self, meanwhile: impl FnOnce()) {
        self.run("device_add", &json!({ "driver": "virtserialport", "id": "brief" }));
        meanwhile();
        self.events.clear();
        self.run("device_del", &json!({ "id": "brief" }));
        while !self.events.iter().any(|event| event == "DEVICE_DELETED") {
            self.line();
        }
    }

    fn ignores_shared(&mut self) -> bool {
        let all = self.run("query-migrate-capabilities", &json!({}));
        let own = all.as_array().unwrap().iter().find(|entry| entry["capability"] == "x-ignore-shared");
        own.unwrap()["state"] == true
    }

    fn wait_migration(&mut self, wanted: &str) {
        while self.run("query-migrate", &json!({}))["status"] != wanted {
            sleep_ms(10);
        }
    }

    /// Block nodes and descriptor sets that are not QEMU's own, and snapshots in its disk.
    fn additions(&mut self) -> (usize, usize, usize) {
        let nodes = self.run("query-named-block-nodes", &json!({}));
        let nodes = nodes.as_array().unwrap().clone();
        let name = |node: &Value| node["node-name"].as_str().unwrap_or_default().to_owned();
        let foreign = nodes.iter().filter(|node| name(node).starts_with("retrovisor-")).count();
        let snapshots = nodes.iter().filter_map(|node| node["image"]["snapshots"].as_array());
        let own =
            snapshots.flatten().filter(|snapshot| snapshot["name"].as_str().unwrap().starts_with("rv-"));
        let own = own.count();
        let sets = self.run("query-fdsets", &json!({})).as_array().unwrap().len();
        (foreign, sets, own)
    }
}

#[test]
fn the_owner_is_noticed_and_gets_qemu_back_as_it_was() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::start(dir.path(), &image);
    let mut owner = qemu.owner();
    assert_eq!(owner.additions(), (0, 0, 0));
    let mut machine = qemu.attach().unwrap();
    wait_console_file(&qemu.dir, "tick 00010");

    // Actions of the owner are reported, those of this driver are not.
    machine.pause().unwrap();
    machine.resume().unwrap();
    assert_eq!(machine.events(), []);
    owner.run("stop", &json!({}));
    assert_eq!((machine.run_state(), machine.events()), (RunState::Paused, vec![GuestEvent::Stopped]));
    owner.run("cont", &json!({}));
    assert_eq!((machine.run_state(), machine.events()), (RunState::Running, vec![GuestEvent::Resumed]));

    // The owner's own migrations and snapshots have the guest's memory in them.
    assert!(!owner.ignores_shared());
    machine.pause().unwrap();
    machine.take_dirty(&mut PageSet::empty(&machine.identity().layout.clone())).unwrap();
    let state = machine.capture_state().unwrap();
    assert!(!owner.ignores_shared());
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    assert!(!owner.ignores_shared());
    assert_eq!(machine.retained_disks().unwrap().len(), 1);
    assert!(machine.capabilities().check_clock(ClockPolicy::JumpToNow).is_err());

    // A device that is added is refused by its name, and nothing of the attempt remains.
    owner.run("device_add", &json!({ "driver": "virtio-rng-pci", "id": "late", "bus": "root0" }));
    let refusal = |machine: &mut QemuMachine| match machine.check_devices() {
        Err(error @ MachineError::Unsupported { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let error = refusal(&mut machine);
    assert!(error.contains("late (virtio-rng-pci) was added"), "{error}");

    machine.resume().unwrap();
    machine.detach(true).unwrap();
    assert_eq!(owner.additions(), (0, 0, 0));
    assert_eq!(owner.run("query-status", &json!({}))["running"], true);
    // The next attach accepts the current devices.
    let mut machine = qemu.attach().unwrap();
    machine.check_devices().unwrap();
    machine.pause().unwrap();
    machine.capture_state().unwrap();
    machine.check_devices().unwrap();

    // A device that was there when the state was captured, and is in neither list, is noticed by its event.
    owner.plug_briefly(|| drop(machine.capture_state().unwrap()));
    let error = refusal(&mut machine);
    assert!(error.contains("brief was removed"), "{error}");
    // One that came and went between two checkpoints is in neither of them.
    owner.plug_briefly(|| ());
    machine.check_devices().unwrap();
    machine.capture_state().unwrap();
    machine.check_devices().unwrap();
}

#[test]
fn a_migration_of_the_owner_is_not_disturbed_and_never_lacks_the_memory() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::start(dir.path(), &image);
    let mut owner = qemu.owner();
    let mut machine = qemu.attach().unwrap();
    wait_console_file(&qemu.dir, "tick 00010");

    // In progress: the guest is neither paused nor is anything changed in QEMU.
    owner.run("migrate-set-parameters", &json!({ "max-bandwidth": 1 }));
    owner.run("migrate", &json!({ "uri": "exec:cat > /dev/null" }));
    let error = machine.pause().unwrap_err();
    assert!(error.to_string().contains("saves or migrates"), "{error}");
    assert_eq!(machine.run_state(), RunState::Running);
    owner.run("migrate_cancel", &json!({}));
    owner.wait_migration("cancelled");
    machine.pause().unwrap();
    machine.capture_state().unwrap();

    // Complete since the pause: the guest continues in its copy, and not here.
    owner.run("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }));
    let copy = dir.path().join("copy");
    owner.run("migrate", &json!({ "uri": format!("exec:cat > {}", copy.display()) }));
    owner.wait_migration("completed");
    assert!(std::fs::metadata(&copy).unwrap().len() > 32 << 20);
    let error = machine.resume().unwrap_err();
    assert!(error.to_string().contains("has saved or migrated"), "{error}");
    assert_eq!(machine.run_state(), RunState::Paused);
    owner.run("cont", &json!({}));
    assert_eq!(machine.run_state(), RunState::Running);

    // Begun while `x-ignore-shared` was on, as after a daemon that was killed within a job: it is cancelled.
    drop(machine);
    assert_eq!(owner.additions().0, 1);
    let on = ["x-ignore-shared", "pause-before-switchover"];
    let on = on.map(|capability| json!({ "capability": capability, "state": true }));
    owner.run("migrate-set-capabilities", &json!({ "capabilities": on }));
    owner.run("migrate", &json!({ "uri": "exec:cat > /dev/null" }));
    owner.wait_migration("pre-switchover");
    let machine = qemu.attach().unwrap();
    assert_eq!(owner.run("query-migrate", &json!({}))["status"], "cancelled");
    assert!(!owner.ignores_shared());
    drop(machine);
}

#[test]
fn a_snapshot_of_the_owner_has_the_memory_whenever_it_is_made() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::start(dir.path(), &image);
    let mut machine = qemu.attach().unwrap();
    wait_console_file(&qemu.dir, "tick 00010");
    for delay_ms in 0..12 {
        machine.pause().unwrap();
        let mut owner = qemu.owner();
        let saving = std::thread::spawn(move || {
            sleep_ms(delay_ms);
            // One that arrives during the job of a checkpoint is executed when the job ends.
            let line = json!({ "command-line": "savevm owners" });
            assert_eq!(owner.run("human-monitor-command", &line), "");
            owner
        });
        machine.capture_state().unwrap();
        let nodes = saving.join().unwrap().run("query-named-block-nodes", &json!({ "flat": true }));
        let snapshots = nodes.as_array().unwrap().iter();
        let snapshots = snapshots.filter_map(|node| node["image"]["snapshots"].as_array()).flatten();
        let own = snapshots.filter(|snapshot| snapshot["name"] == "owners");
        let bytes = own.filter_map(|snapshot| snapshot["vm-state-size"].as_u64()).max().unwrap();
        assert!(bytes > 32 << 20, "{bytes} bytes, {delay_ms} ms after the pause");
        machine.resume().unwrap();
    }
}

#[test]
fn a_migration_of_the_owner_has_the_memory_or_is_cancelled_whenever_it_begins() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::start(dir.path(), &image);
    let mut machine = qemu.attach().unwrap();
    wait_console_file(&qemu.dir, "tick 00010");
    qemu.owner().run("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }));
    for delay_ms in 0..12 {
        machine.pause().unwrap();
        let mut owner = qemu.owner();
        let copy = dir.path().join(format!("copy-{delay_ms}"));
        let uri = json!({ "uri": format!("exec:cat > {}", copy.display()) });
        let migrating = std::thread::spawn(move || {
            sleep_ms(delay_ms);
            owner.run("migrate", &uri);
            owner
        });
        // Refused when the migration began before.
        let _captured = machine.capture_state();
        let mut owner = migrating.join().unwrap();
        let status = loop {
            let status = owner.run("query-migrate", &json!({}))["status"].as_str().unwrap().to_owned();
            if ["completed", "cancelled"].contains(&status.as_str()) {
                break status;
            }
            sleep_ms(10);
        };
        if status == "completed" {
            let bytes = std::fs::metadata(&copy).unwrap().len();
            assert!(bytes > 32 << 20, "{bytes} bytes, {delay_ms} ms after the pause");
            owner.run("cont", &json!({}));
        }
        assert!(!owner.ignores_shared());
        machine.resume().unwrap();
        assert_eq!(machine.run_state(), RunState::Running);
    }
}

/// Waits until the console's log has `wanted`.
pub(crate) fn wait_console_file(dir: &Path, wanted: &str) {
    let began = std::time::Instant::now();
    loop {
        let text = std::fs::read(dir.join("console.log")).unwrap_or_default();
        if String::from_utf8_lossy(&text).contains(wanted) {
            return;
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(90), "no {wanted:?} on the console");
        sleep_ms(50);
    }
}
