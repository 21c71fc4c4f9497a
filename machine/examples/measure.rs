//! Measures the QEMU driver on the test guest: the parts of a checkpoint's pause and of a rollback.
//!
//! `cargo run --release -p retrovisor-machine --example measure [-- CHECKPOINTS [MEMORY_MIB]]`
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on stops")]

#[path = "../tests/qemu/guest.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod guest;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use retrovisor_guest::{Machine, MemoryIo as _, PAGE_SIZE, PageContent, PageSet, StateIo as _, ZERO_PAGE};
use retrovisor_machine::qemu::{LaunchConfig, QemuMachine};

#[derive(Default)]
struct Samples(BTreeMap<&'static str, Vec<u64>>);

impl Samples {
    fn add(&mut self, name: &'static str, value: u64) {
        self.0.entry(name).or_default().push(value);
    }

    fn print(&mut self) {
        println!("{:<24} {:>9} {:>9} {:>9} {:>5}", "", "p50", "p99", "max", "n");
        for (name, values) in &mut self.0 {
            values.sort_unstable();
            let at = |percent: usize| values[(values.len() - 1) * percent / 100];
            println!("{name:<24} {:>9} {:>9} {:>9} {:>5}", at(50), at(99), at(100), values.len());
        }
    }
}

fn us(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_micros()).unwrap()
}

fn main() {
    let Some(image) = guest::image() else { return };
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap());
    let (checkpoints, mib) = (arguments.next().unwrap_or(100), arguments.next().unwrap_or(512));
    let dir = tempfile::tempdir().unwrap();
    let config = LaunchConfig { memory_bytes: mib << 20, ..guest::config(&image, dir.path()) };
    let begin = Instant::now();
    let mut machine = QemuMachine::launch(&config).unwrap();
    println!("launch to control: {} ms; finder {:?}", us(begin) / 1000, machine.finder());
    guest::wait_console(&machine, 0, "tick 00020");
    println!("boot to tick 20: {} ms", us(begin) / 1000);

    // More pages than the normal workload dirties: about a thousand between two checkpoints.
    let mut shell = guest::Shell::open(&machine);
    shell.run("dd if=/dev/zero of=/run/load bs=4k count=700 2>/dev/null");
    shell.send("while :; do dd if=/dev/urandom of=/run/load bs=4k count=700 conv=notrunc 2>/dev/null; usleep 100000; done &");

    let mut samples = Samples::default();
    let layout = machine.identity().layout.clone();
    let mut staging = vec![0_u8; usize::try_from(layout.bytes()).unwrap()];
    let mut last = None;
    for number in 0..checkpoints {
        std::thread::sleep(Duration::from_millis(200));
        let begin = Instant::now();
        machine.check_devices().unwrap();
        samples.add("0 device check us", us(begin));
        let begin = Instant::now();
        machine.pause().unwrap();
        let mut dirty = PageSet::empty(&layout);
        machine.take_dirty(&mut dirty).unwrap();
        let copy = Instant::now();
        let mut page = ZERO_PAGE;
        for (at, gfn) in dirty.iter().enumerate() {
            machine.memory().read_page(gfn, &mut page).unwrap();
            staging[at * PAGE_SIZE..(at + 1) * PAGE_SIZE].copy_from_slice(&page);
        }
        let copy_us = us(copy);
        let state = machine.capture_state().unwrap();
        let before_cont = us(begin);
        machine.resume().unwrap();
        let timing = machine.timing();
        if number > 0 {
            samples.add("dirty pages", dirty.len());
            samples.add("1 stop us", timing.stop_us);
            samples.add("2 find us", timing.find_us);
            samples.add("3 copy us", copy_us);
            samples.add("4 state us", timing.state_us);
            samples.add("5 cont us", timing.cont_us);
            samples.add("6 pause us", before_cont + timing.cont_us);
            samples.add("7 after cont us", us(begin) - before_cont - timing.cont_us);
            samples.add("state bytes", state.sections.iter().map(|section| section.bytes.len() as u64).sum());
        }
        if let Some(old) = last.replace(state) {
            machine.release_state(&old).unwrap();
        }
    }
    drop(last);

    machine.pause().unwrap();
    // The image is whole once, and kept so by dirty pages: those of the rollback itself are put back by it.
    let mut image = Vec::new();
    for gfn in layout.gfns() {
        let mut page = ZERO_PAGE;
        machine.memory().read_page(gfn, &mut page).unwrap();
        image.extend(page);
    }
    for _ in 0..checkpoints / 4 {
        let checkpoint = guest::capture(&mut machine, image);
        machine.resume().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        machine.pause().unwrap();
        let mut dirty = PageSet::empty(&layout);
        machine.take_dirty(&mut dirty).unwrap();
        let write = Instant::now();
        for gfn in dirty.iter() {
            let at = usize::try_from(layout.index(gfn).unwrap()).unwrap() * PAGE_SIZE;
            let page = checkpoint.memory[at..at + PAGE_SIZE].try_into().unwrap();
            machine.write_page(gfn, PageContent::Data(page)).unwrap();
        }
        let write_us = us(write);
        machine.apply_state(&checkpoint.state, retrovisor_guest::ClockPolicy::StandStill).unwrap();
        let before_cont = us(begin);
        machine.resume().unwrap();
        let timing = machine.timing();
        samples.add("rollback stop us", timing.stop_us);
        samples.add("rollback write us", write_us);
        samples.add("rollback load us", timing.load_us);
        samples.add("rollback cont us", timing.cont_us);
        samples.add("rollback us", before_cont + timing.cont_us);
        samples.add("rollback pages", dirty.len());
        machine.release_state(&checkpoint.state).unwrap();
        image = checkpoint.memory;
    }
    samples.print();
    std::thread::sleep(Duration::from_secs(2));
    println!("last tick {:?}", guest::ticks(&guest::console(&machine)).last());
    machine.quit();
}
