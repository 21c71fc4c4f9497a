//! Disk contents: read from a running guest's overlay, and written through QEMU.

use std::path::Path;
use std::process::Command;

use retrovisor_guest::{
    BLOCK_SIZE, BlockContent, ClockPolicy, DiskIo as _, DiskState, Machine, MachineState, MemoryIo as _,
    Page, PageContent, RunContent, StateIo as _,
};
use retrovisor_machine::qemu::{LaunchConfig, QemuMachine};

use crate::guest::{Checkpoint, Shell, capture, config, console, differing, image, ticks, wait_console};

/// The disk at a state, from what it was at another (or the base) and the blocks that changed.
fn contents(
    machine: &QemuMachine,
    at: &DiskState,
    since: Option<&DiskState>,
    mut from: Vec<u8>,
    base: &[u8],
) -> (Vec<u8>, u64) {
    let mut changes = machine.disk_changes(at, since).unwrap();
    let (mut bytes, mut blocks) = (Vec::new(), 0);
    while let Some(run) = changes.next_run(&mut bytes).unwrap() {
        let start = usize::try_from(run.first).unwrap() * BLOCK_SIZE;
        let range = start..start + usize::try_from(run.count).unwrap() * BLOCK_SIZE;
        blocks += run.count;
        match run.content {
            RunContent::Zero => from[range].fill(0),
            RunContent::Base => from[range.clone()].copy_from_slice(&base[range]),
            RunContent::Data => from[range].copy_from_slice(&bytes),
        }
    }
    (from, blocks)
}

/// The disk at a state, read block by block, whether or not they changed.
fn read_blocks(machine: &QemuMachine, at: &DiskState, size: usize) -> Vec<u8> {
    let mut blocks = machine.disk_blocks(at).unwrap();
    let pieces = (size / BLOCK_SIZE) as u64 / 16;
    let ranges: Vec<_> = (0..pieces).map(|piece| piece * 16..(piece + 1) * 16).collect();
    let (mut image, mut bytes, mut next) = (vec![0; size], Vec::new(), 0);
    while next < pieces * 16 {
        let rest = &ranges[usize::try_from(next / 16).unwrap()..];
        let runs = blocks.read(rest, 64, &mut bytes).unwrap();
        let mut data = &bytes[..];
        for run in runs {
            assert_eq!(run.first, next);
            next += run.count;
            let (first, end) = (usize::try_from(run.first).unwrap(), usize::try_from(next).unwrap());
            let into = &mut image[first * BLOCK_SIZE..end * BLOCK_SIZE];
            match run.content {
                RunContent::Zero => {}
                RunContent::Data => into.copy_from_slice(data.split_off(..into.len()).unwrap()),
                RunContent::Base => {
                    for (block, page) in (run.first..).zip(into.as_chunks_mut::<BLOCK_SIZE>().0) {
                        blocks.read_base(block, page).unwrap();
                    }
                }
            }
        }
        assert!(data.is_empty());
    }
    image
}

/// Writes the differences between two images, and restores memory and devices.
fn put(machine: &mut QemuMachine, now: &[u8], wanted: &[u8], checkpoint: &Checkpoint) {
    let blocks = now.as_chunks::<BLOCK_SIZE>().0.iter().zip(wanted.as_chunks::<BLOCK_SIZE>().0).enumerate();
    let mut run: (u64, Vec<BlockContent<'_>>) = (0, Vec::new());
    for (block, (_, wanted)) in blocks.filter(|(_, (now, wanted))| now != wanted) {
        let block = block as u64;
        if run.0 + run.1.len() as u64 != block {
            machine.write_blocks("d0", run.0, &run.1).unwrap();
            run = (block, Vec::new());
        }
        run.1.push(BlockContent::Data(wanted));
    }
    machine.write_blocks("d0", run.0, &run.1).unwrap();
    for gfn in differing(machine.memory(), &checkpoint.memory) {
        let layout = checkpoint_layout(machine);
        let at = usize::try_from(layout.index(gfn).unwrap()).unwrap() * BLOCK_SIZE;
        let page: &Page = checkpoint.memory[at..at + BLOCK_SIZE].try_into().unwrap();
        machine.write_page(gfn, PageContent::Data(page)).unwrap();
    }
    let state = MachineState { disks: vec![DiskState::unchanged("d0")], ..checkpoint.state.clone() };
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
}

fn checkpoint_layout(machine: &QemuMachine) -> retrovisor_guest::MemoryLayout {
    machine.identity().layout.clone()
}

/// The snapshot's contents according to QEMU.
fn as_qemu_reads(dir: &Path, tag: &str) -> Option<Vec<u8>> {
    let out = dir.join("said.raw");
    let snapshot = format!("snapshot.name={tag}");
    let run = Command::new("qemu-img")
        .args(["convert", "-U", "-l", &snapshot, "-Oraw"])
        .arg(dir.join("disks/d0.qcow2"))
        .arg(&out)
        .output();
    let Ok(run) = run else {
        eprintln!("SKIPPED in part: qemu-img (package qemu-utils) is not installed");
        return None;
    };
    assert!(run.status.success(), "{run:?}");
    Some(std::fs::read(out).unwrap())
}

#[test]
fn blocks_are_read_while_the_guest_runs_and_written_into_it_and_into_a_new_process() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let base = std::fs::read(image.join("disk.raw")).unwrap();
    let mut machine = QemuMachine::launch(&config(&image, dir.path())).unwrap();
    let shape = machine.disks()[0].clone();
    assert_eq!((shape.name.as_str(), shape.size_bytes), ("d0", base.len() as u64));
    assert_eq!(shape.base.as_ref().unwrap().files[0].length_bytes, base.len() as u64);
    wait_console(&machine, 0, "tick 00010");
    let mut shell = Shell::open(&machine);
    assert_eq!(shell.run("echo before >/data/test; sync; cat /data/test"), "before");
    let one = capture(&mut machine, Vec::new());
    machine.resume().unwrap();
    let noise = "dd if=/dev/urandom of=/data/noise bs=64k count=40 2>/dev/null; sync";
    assert_eq!(shell.run(&format!("echo after >/data/test; {noise}; cat /data/test")), "after");
    let two = capture(&mut machine, one.memory.clone());
    machine.resume().unwrap();
    // The guest continues writing while its past is read.
    shell.send("for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/data/noise bs=64k count=40; sync; done 2>/dev/null; echo OVER");
    let (at_one, at_two) = (&one.state.disks[0], &two.state.disks[0]);
    let (first, blocks) = contents(&machine, at_one, None, base.clone(), &base);
    eprintln!("{blocks} blocks of the base were written");
    let (second, blocks) = contents(&machine, at_two, Some(at_one), first.clone(), &base);
    eprintln!("{blocks} blocks were written between the two");
    assert!((640..3000).contains(&blocks), "{blocks} blocks");
    assert!(contents(&machine, at_two, None, base.clone(), &base).0 == second);
    assert!(contents(&machine, at_one, Some(at_two), second.clone(), &base).0 == first);
    for (state, found) in [(at_one, &first), (at_two, &second)] {
        assert!(read_blocks(&machine, state, base.len()) == *found, "{}", state.reference);
        if let Some(said) = as_qemu_reads(dir.path(), &state.reference) {
            assert!(said == *found, "{}", state.reference);
        }
    }

    // Its snapshot is gone: the first state is restored by its blocks.
    machine.pause().unwrap();
    machine.release_state(&one.state).unwrap();
    machine.release_state(&one.state).unwrap();
    assert!(!machine.retains_disks(&one.state).unwrap() && machine.retains_disks(&two.state).unwrap());
    let present = machine.capture_state().unwrap();
    let (now, _) = contents(&machine, &present.disks[0], Some(at_two), second.clone(), &base);
    let start = std::time::Instant::now();
    put(&mut machine, &now, &first, &one);
    eprintln!("written and checked in {:?}", start.elapsed());
    let from = console(&machine).len();
    machine.resume().unwrap();
    wait_console(&machine, from, "tick ");
    let look =
        "echo 3 >/proc/sys/vm/drop_caches; ls /data/noise >/dev/null 2>&1 && echo noise; cat /data/test";
    assert_eq!(shell.run(&format!("sync; {look}")), "before");
    ticks(&console(&machine)[from..]);
    drop(shell);
    machine.quit();

    // A new process, whose overlay is a new one.
    std::fs::remove_file(dir.path().join("disks/d0.qcow2")).unwrap();
    let paused = LaunchConfig { paused: true, ..config(&image, dir.path()) };
    let mut machine = QemuMachine::launch(&paused).unwrap();
    put(&mut machine, &base, &second, &two);
    let from = console(&machine).len();
    machine.resume().unwrap();
    wait_console(&machine, from, "tick ");
    let mut shell = Shell::open(&machine);
    assert_eq!(shell.run("sync; echo 3 >/proc/sys/vm/drop_caches; cat /data/test"), "after");
    ticks(&console(&machine)[from..]);
}

#[test]
fn blocks_that_cannot_be_written_are_refused_and_a_write_that_failed_is_noticed() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = QemuMachine::launch(&config(&image, dir.path())).unwrap();
    let zero = [BlockContent::Zero];
    assert!(machine.write_blocks("d0", 0, &zero).is_err(), "the guest runs");
    machine.pause().unwrap();
    let state = machine.capture_state().unwrap();
    let blocks = machine.disks()[0].blocks();
    assert!(machine.write_blocks("d1", 0, &zero).is_err());
    assert!(machine.write_blocks("d0", blocks, &zero).unwrap_err().to_string().contains("no blocks"));
    assert!(machine.write_blocks("d0", u64::MAX, &zero).is_err());
    // Another process removes the image while QEMU has it open: the written blocks do not reach it.
    let path = dir.path().join("disks/d0.qcow2");
    let copy = std::fs::read(&path).unwrap();
    std::fs::rename(&path, dir.path().join("away")).unwrap();
    std::fs::write(&path, copy).unwrap();
    let page = [7; BLOCK_SIZE];
    machine.write_blocks("d0", 5, &[BlockContent::Data(&page)]).unwrap();
    let unchanged = MachineState { disks: vec![DiskState::unchanged("d0")], ..state.clone() };
    let error = machine.apply_state(&unchanged, ClockPolicy::StandStill).unwrap_err();
    assert!(error.to_string().contains("block 5 does not hold"), "{error}");
    assert!(machine.resume().is_err());
    std::fs::rename(dir.path().join("away"), &path).unwrap();
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    machine.resume().unwrap();
}
