//! Attaches to a QEMU that runs and measures the pauses of checkpoints, without storing them.
//!
//! `cargo run --release -p retrovisor-machine --example measure_attach -- SOCKET [CHECKPOINTS]`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::time::{Duration, Instant};

use retrovisor_guest::{Machine as _, MemoryIo as _, PAGE_SIZE, PageSet, StateIo as _, ZERO_PAGE};
use retrovisor_machine::qemu::{AttachConfig, QemuMachine};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let qmp = std::path::PathBuf::from(arguments.next().expect("the socket of QEMU's monitor"));
    let checkpoints = arguments.next().map_or(100, |count| count.parse::<u64>().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let config = AttachConfig { name: "measured".into(), qmp, runtime_dir: dir.path().into() };
    let begin = Instant::now();
    let mut machine = QemuMachine::attach(&config).unwrap();
    println!("attached in {} us; finder {:?}", us(begin), machine.finder());

    let mut samples = [const { Vec::new() }; 6];
    let layout = machine.identity().layout.clone();
    let mut staging = vec![0_u8; usize::try_from(layout.bytes()).unwrap()];
    let mut last = None;
    for number in 0..=checkpoints {
        std::thread::sleep(Duration::from_millis(500));
        let begin = Instant::now();
        machine.pause().unwrap();
        let mut dirty = PageSet::empty(&layout);
        machine.take_dirty(&mut dirty).unwrap();
        let copy = Instant::now();
        let mut page = ZERO_PAGE;
        for (gfn, staged) in dirty.iter().zip(staging.chunks_exact_mut(PAGE_SIZE)) {
            machine.memory().read_page(gfn, &mut page).unwrap();
            staged.copy_from_slice(&page);
        }
        let copy_us = us(copy);
        let state = machine.capture_state().unwrap();
        machine.resume().unwrap();
        let pause_us = us(begin);
        let timing = machine.timing();
        // The first one copies all memory.
        if number > 0 {
            let values = [dirty.len(), timing.stop_us, timing.find_us, copy_us, timing.state_us, pause_us];
            for (samples, value) in samples.iter_mut().zip(values) {
                samples.push(value);
            }
        }
        if let Some(old) = last.replace(state) {
            machine.release_state(&old).unwrap();
        }
    }
    println!("{:<12} {:>9} {:>9} {:>9}", "", "p50", "p90", "max");
    let names = ["dirty pages", "stop us", "find us", "copy us", "state us", "pause us"];
    for (name, values) in names.into_iter().zip(&mut samples) {
        values.sort_unstable();
        let at =
            |percent: usize| values.get(values.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0);
        println!("{name:<12} {:>9} {:>9} {:>9}", at(50), at(90), at(100));
    }
    let begin = Instant::now();
    machine.detach(true).unwrap();
    println!("detached in {} us", us(begin));
}

fn us(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_micros()).unwrap()
}
