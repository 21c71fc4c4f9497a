//! Starting and ending QEMU.

use std::time::Duration;

use retrovisor_guest::{Machine, MemoryIo as _};
use retrovisor_machine::qemu::QemuMachine;

use crate::guest::{config, image, wait_console};
use crate::sleep_ms;

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
        .args(["--exact", "launch::qemu_ends_with_the_process_that_launched_it"])
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
    // A zombie has no command line.
    within("QEMU's end", &|| std::fs::read(&process).map_or(true, |line| line.is_empty()));
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
    configs.push(with(&|config| config.kernel = config.disks[0].path.clone(), "it wrote last"));
    configs.push(with(&|config| config.memory_bytes = 5, "whole MiB"));
    configs.push(with(&|config| config.vcpus = 0, "1 to 255"));
    configs.push(with(&|config| config.name = "a,b".into(), "is not a machine's name"));
    configs.push(with(&|config| config.runtime_dir = runtime.join("x".repeat(100)), "too long for a socket"));
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
