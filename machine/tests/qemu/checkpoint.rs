//! Checkpoints, rollback and restart.

use std::time::Duration;

use retrovisor_guest::{
    ClockPolicy, DiskIo as _, GuestEvent, Machine, MachineError, MemoryIo as _, PageContent, PageSet,
    RunState, StateIo as _,
};
use retrovisor_machine::qemu::QemuMachine;

use crate::guest::{self, Shell, capture, config, console, image, restore, ticks, wait_console};
use crate::sleep_ms;

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
        // The image that was updated only by dirty pages equals all of memory.
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
            // Rollbacks by one to four checkpoints, each continued: what follows is another history.
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
    assert_eq!(machine.retained_disks().unwrap().len(), checkpoints.len());
    for checkpoint in &checkpoints {
        machine.release_state(&checkpoint.state).unwrap();
    }
    assert_eq!(machine.retained_disks().unwrap(), []);
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
    // Reads the disk, not the guest's page cache.
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
fn a_guest_that_switched_itself_off_is_restored_in_place() {
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
    while machine.run_state() != RunState::PoweredOff {
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
fn the_end_of_qemu_is_reported_with_its_signal() {
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
    // Damaged device state: the machine reports it and does not run.
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
