//! The QEMU driver on the real test guest.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod guest;

use std::time::Duration;

use guest::{Shell, capture, config, console, image, restore, ticks, wait_console};
use retrovisor_guest::{ClockPolicy, Machine, MachineError, PageContent, PageSet, RunState};
use retrovisor_machine::qemu::{AttachConfig, GuestEvent, QemuMachine};

fn sleep_ms(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[test]
fn twenty_checkpoints_under_load_restore_bit_exactly_in_place_and_in_a_new_process() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = QemuMachine::launch(&config(&image, dir.path())).unwrap();
    eprintln!("finder: {:?}", machine.finder());
    wait_console(&machine, 0, "tick 00010");

    let mut checkpoints: Vec<guest::Checkpoint> = Vec::new();
    for number in 0..20_usize {
        let before = checkpoints.last().map(|checkpoint| checkpoint.memory.clone()).unwrap_or_default();
        let checkpoint = capture(&mut machine, before);
        // What the dirty pages alone brought up to date is all of memory.
        let missed = guest::differing(machine.memory(), &checkpoint.memory);
        assert!(missed.is_empty(), "checkpoint {number} missed {missed:?}");
        assert_eq!(checkpoint.state.vcpus.len(), 2);
        assert!(
            checkpoint
                .state
                .vcpus
                .iter()
                .all(|vcpu| vcpu.cr3 != 0 && vcpu.lstar.is_some_and(|lstar| lstar >> 63 == 1))
        );
        if number > 0 {
            assert!(checkpoint.dirty < 30_000, "{} dirty pages are not an increment", checkpoint.dirty);
        }
        checkpoints.push(checkpoint);
        machine.resume().unwrap();
        sleep_ms(150);
        if number % 4 == 3 {
            // Back by one to four checkpoints, and on from there: what follows is another future.
            let back = checkpoints.len() - 1 - (number / 4) % 4;
            restore(&mut machine, &checkpoints[back]);
            machine.resume().unwrap();
            let memory = checkpoints[back].memory.clone();
            sleep_ms(100);
            let after = capture(&mut machine, memory);
            assert!(after.dirty > 0);
            // Pages written by the restore are not reported: the image must be brought up to date from what they hold.
            let missed = guest::differing(machine.memory(), &after.memory);
            assert!(missed.is_empty(), "after rollback {number} missed {missed:?}");
            checkpoints.push(after);
            machine.resume().unwrap();
        }
    }
    for at in [0, 7, 3, checkpoints.len() - 1] {
        restore(&mut machine, &checkpoints[at]);
        machine.resume().unwrap();
        sleep_ms(300);
    }
    let from = console(&machine).len();
    wait_console(&machine, from, "tick ");
    wait_console(&machine, from, " ok");
    let seen = ticks(&console(&machine));
    assert!(seen.windows(2).any(|pair| pair[1] <= pair[0]), "no tick came twice: {seen:?}");
    machine.quit();

    // A new process opens the same overlay, and takes any of the states.
    let paused = retrovisor_machine::qemu::LaunchConfig { paused: true, ..config(&image, dir.path()) };
    let mut machine = QemuMachine::launch(&paused).unwrap();
    assert_eq!(machine.run_state(), RunState::Paused);
    let from = console(&machine).len();
    restore(&mut machine, &checkpoints[5]);
    machine.resume().unwrap();
    wait_console(&machine, from, "ok");
    sleep_ms(1500);
    let seen = ticks(&console(&machine)[from..]);
    assert!(!seen.is_empty(), "{}", &console(&machine)[from..]);
    assert_eq!(machine.kept_disks().unwrap().len(), checkpoints.len());
    for checkpoint in &checkpoints {
        machine.release_state(&checkpoint.state).unwrap();
    }
    assert_eq!(machine.kept_disks().unwrap(), []);
    machine.pause().unwrap();
    let error = machine.apply_state(&checkpoints[5].state, ClockPolicy::StandStill).unwrap_err();
    assert!(matches!(error, MachineError::Mismatch { .. }), "{error}");
    assert_eq!(machine.run_state(), RunState::Paused);
    machine.resume().unwrap();
}

#[test]
fn the_disk_goes_back_with_the_memory() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk_before = std::fs::read(image.join("disk.raw")).unwrap();
    let mut machine = QemuMachine::launch(&config(&image, dir.path())).unwrap();
    wait_console(&machine, 0, "tick 00010");
    let mut shell = Shell::open(&machine);
    assert_eq!(shell.run("echo before >/data/test; sync; cat /data/test"), "before");
    let checkpoint = capture(&mut machine, Vec::new());
    machine.resume().unwrap();
    assert_eq!(shell.run("echo after >/data/test; dd if=/dev/urandom of=/data/more bs=64k count=32 2>/dev/null; sync; cat /data/test"), "after");
    restore(&mut machine, &checkpoint);
    machine.resume().unwrap();
    // Read the disk, not what the guest remembers of it.
    let drop = "sync; echo 3 >/proc/sys/vm/drop_caches";
    assert_eq!(
        shell.run(&format!("{drop}; cat /data/test; ls /data/more 2>/dev/null || cat /data/test")),
        "before"
    );
    let from = console(&machine).len();
    wait_console(&machine, from, "tick ");
    ticks(&console(&machine));
    machine.quit();
    assert!(std::fs::read(image.join("disk.raw")).unwrap() == disk_before, "the user's disk was written");
}

#[test]
fn a_guest_that_switched_itself_off_is_taken_back() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = QemuMachine::launch(&config(&image, dir.path())).unwrap();
    wait_console(&machine, 0, "tick 00010");
    let checkpoint = capture(&mut machine, Vec::new());
    machine.resume().unwrap();
    // The shell stays connected: what was sent is lost when the socket closes before QEMU reads it.
    let mut shell = Shell::open(&machine);
    shell.send("echo o >/proc/sysrq-trigger");
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while machine.run_state() != RunState::Gone {
        assert!(std::time::Instant::now() < deadline, "the guest did not switch itself off");
        sleep_ms(50);
    }
    let events = machine.events();
    assert!(
        events.iter().any(|event| matches!(event, GuestEvent::Shutdown { by_guest: true, .. })),
        "{events:?}"
    );
    assert!(machine.resume().is_err());
    restore(&mut machine, &checkpoint);
    let from = console(&machine).len();
    machine.resume().unwrap();
    assert_eq!(machine.run_state(), RunState::Running);
    wait_console(&machine, from, "tick ");
    ticks(&console(&machine));
}

#[test]
fn the_end_of_qemu_is_told_with_its_signal() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = QemuMachine::launch(&config(&image, dir.path())).unwrap();
    let mut dirty = PageSet::empty(&machine.identity().layout.clone());
    machine.pause().unwrap();
    machine.take_dirty(&mut dirty).unwrap();
    let pid = nix::unistd::Pid::from_raw(machine.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let error = machine.capture_state().unwrap_err();
    assert!(matches!(error, MachineError::Gone { .. }) && error.to_string().contains("signal 9"), "{error}");
    assert!(matches!(machine.resume(), Err(MachineError::Gone { .. })));
    assert!(machine.take_dirty(&mut dirty).is_err());
    assert_eq!(machine.run_state(), RunState::Gone);
}

#[test]
fn a_detached_machine_is_attached_again_by_a_later_self() {
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
    // The second try meets the queue that the first one filled.
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

/// Set in the process that [`qemu_ends_with_the_process_that_launched_it`] starts and ends.
const CHILD: &str = "RETROVISOR_TEST_LAUNCH_IN";

#[test]
fn qemu_ends_with_the_process_that_launched_it() {
    let Some(image) = image() else { return };
    if let Some(dir) = std::env::var_os(CHILD) {
        let mut machine = QemuMachine::launch(&config(&image, dir.as_ref())).unwrap();
        std::fs::write(std::path::Path::new(&dir).join("pid"), machine.pid().to_string()).unwrap();
        loop {
            sleep_ms(1000);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "qemu_ends_with_the_process_that_launched_it"])
        .env(CHILD, dir.path())
        .spawn()
        .unwrap();
    let within = |what: &str, done: &dyn Fn() -> bool| {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(std::time::Instant::now() < deadline, "{what} did not come");
            sleep_ms(20);
        }
    };
    let pid = || std::fs::read_to_string(dir.path().join("pid")).unwrap_or_default();
    within("the launch", &|| !pid().is_empty());
    let process = format!("/proc/{}/cmdline", pid());
    assert!(std::fs::read_to_string(&process).unwrap().contains("guest=test"));
    child.kill().unwrap();
    child.wait().unwrap();
    // A zombie that nobody collects has no command line.
    within("QEMU's end", &|| std::fs::read(&process).map_or(true, |line| line.is_empty()));
}

/// A QEMU as others start it. Ended when dropped.
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
    let console = format!("file:{}", dir.path().join("console.log").display());
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
        &console,
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
    let from = self::console(&machine).len();
    restore(&mut machine, &first);
    machine.resume().unwrap();
    wait_console(&machine, from, "tick ");
    ticks(&self::console(&machine));
    // Letting go leaves the guest running.
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

#[test]
fn a_launch_that_fails_says_why_and_leaves_nothing() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("run");
    let good = config(&image, &runtime);
    let mut configs = vec![(good.clone(), "cannot be read"); 1];
    configs[0].0.kernel = "/nonexistent/vmlinuz".into();
    let with = |change: &dyn Fn(&mut retrovisor_machine::qemu::LaunchConfig), word: &'static str| {
        let mut config = good.clone();
        change(&mut config);
        (config, word)
    };
    configs.push(with(
        &|config| config.binary = Some("/nonexistent/qemu".into()),
        "apt install qemu-system-x86",
    ));
    configs.push(with(&|config| config.binary = Some("/bin/false".into()), "ended with status 1"));
    configs.push(with(&|config| config.kernel = config.disks[0].path.clone(), "its last words"));
    configs.push(with(&|config| config.memory_bytes = 5, "whole MiB"));
    configs.push(with(&|config| config.vcpus = 0, "1 to 255"));
    configs.push(with(&|config| config.name = "a,b".into(), "is not a machine's name"));
    configs.push(with(&|config| config.runtime_dir = runtime.join("x".repeat(100)), "too long for sockets"));
    configs.push(with(&|config| config.disks.push(config.disks[0].clone()), "two disks have one name"));
    for (config, word) in configs {
        let error = QemuMachine::launch(&config).err().unwrap();
        assert!(error.to_string().contains(word), "{error}");
        assert!(
            !config.runtime_dir.exists(),
            "{word}: {:?}",
            std::fs::read_dir(&runtime).map(Iterator::collect::<Vec<_>>)
        );
    }
}

#[test]
fn what_needs_a_pause_is_refused_while_the_guest_runs() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = QemuMachine::launch(&config(&image, dir.path())).unwrap();
    assert!(matches!(machine.capture_state(), Err(MachineError::RunState { .. })));
    let first = machine.identity().layout.gfn(0).unwrap();
    assert!(matches!(machine.write_page(first, PageContent::Zero), Err(MachineError::RunState { .. })));
    machine.pause().unwrap();
    machine.pause().unwrap();
    let state = machine.capture_state().unwrap();
    assert!(matches!(
        machine.apply_state(&state, ClockPolicy::JumpToNow),
        Err(MachineError::Unsupported { .. })
    ));
    let mut other = state.clone();
    other.disks.clear();
    assert!(matches!(
        machine.apply_state(&other, ClockPolicy::StandStill),
        Err(MachineError::Mismatch { .. })
    ));
    // Damaged device state: the machine says so and does not run on what is there.
    let mut damaged = state.clone();
    let bytes = &mut damaged.sections[1].bytes;
    bytes.truncate(bytes.len() / 2);
    assert!(machine.apply_state(&damaged, ClockPolicy::StandStill).is_err());
    assert!(machine.resume().is_err());
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    machine.resume().unwrap();
    machine.resume().unwrap();
    wait_console(&machine, 0, "tick 00010");
}

#[test]
fn a_guest_of_four_gib_has_two_slots() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut large = config(&image, dir.path());
    (large.memory_bytes, large.paused, large.disks) = (4 << 30, true, Vec::new());
    let mut machine = QemuMachine::launch(&large).unwrap();
    let slots = machine.identity().layout.slots().to_vec();
    assert_eq!(slots.len(), 2);
    assert_eq!((slots[0].length_bytes, slots[1].gpa.0), (2 << 30, 4 << 30));
    machine.resume().unwrap();
    wait_console(&machine, 0, "tick 00010");
    machine.pause().unwrap();
    // The kernel keeps its page tables and most of its data in the upper slot.
    let used = large_used(&machine, slots[1].gpa);
    assert!(used > 1000, "{used} pages used above 4 GiB");
}

fn large_used(machine: &QemuMachine, from: retrovisor_guest::Gpa) -> usize {
    let mut page = retrovisor_guest::ZERO_PAGE;
    let memory = machine.memory();
    let upper = memory.layout().gfns().filter(|gfn| *gfn >= from.gfn());
    upper.filter(|gfn| memory.read_page(*gfn, &mut page).is_ok() && !retrovisor_guest::is_zero(&page)).count()
}
