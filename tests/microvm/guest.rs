use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use retrovisor_guest::{Machine as _, MemoryLayout, RunState};
use retrovisor_machine::kvm::{Boot, DiskConfig, KvmConfig, KvmMachine, MemorySource, memory_layout};
use retrovisor_tests::GuestImage;

use crate::autopsy;

pub(crate) const VCPUS: u32 = 2;

/// The test guest in a microVM, with its disk; it waits for its first resume when `paused`.
pub(crate) fn launch(paused: bool) -> KvmMachine {
    KvmMachine::launch(&KvmConfig { paused, ..config("linux", "tell-time") }).unwrap()
}

/// The test guest in a microVM; `append` is added to the kernel's command line.
pub(crate) fn config(name: &str, append: &str) -> KvmConfig {
    let image = GuestImage::files().unwrap();
    let disks = vec![DiskConfig {
        base: Some(image.disk),
        size_bytes: None,
        read_only: false,
        changes_dir: std::env::temp_dir(),
    }];
    let layout = memory_layout(256 << 20).unwrap();
    KvmConfig { name: name.into(), disks, ..of_kernel(image.kernel, image.initrd, append, layout) }
}

/// A guest of such a kernel, without a disk.
pub(crate) fn of_kernel(kernel: PathBuf, initrd: PathBuf, append: &str, layout: MemoryLayout) -> KvmConfig {
    KvmConfig {
        name: "linux".into(),
        layout,
        memory: MemorySource::Fresh,
        vcpus: VCPUS,
        disks: Vec::new(),
        boot: Boot::Linux {
            kernel,
            initrd: Some(initrd),
            append: format!("console=ttyS0 quiet panic=-1 {append}"),
        },
        nets: Vec::new(),
        channel: false,
        paused: false,
    }
}

/// What the guest said, cut where it was taken back: there a line may end in its middle, and another go on in its own.
#[derive(Default)]
pub(crate) struct Listener {
    cuts: Vec<usize>,
}

impl Listener {
    /// The guest goes on from somewhere else now.
    pub(crate) fn cut(&mut self, machine: &KvmMachine) {
        self.cuts.push(machine.console().len());
    }

    /// Waits until the running guest says another tick, and tells which.
    pub(crate) fn wait_tick(&self, machine: &mut KvmMachine) -> u64 {
        let before = self.ticks(machine).len();
        let began = Instant::now();
        loop {
            let ticks = self.ticks(machine);
            if ticks.len() > before
                && let Some((tick, _)) = ticks.last()
            {
                return *tick;
            }
            let console = String::from_utf8_lossy(&machine.console()).into_owned();
            assert_ne!(machine.run_state(), RunState::Gone, "{:?}\n{console}", machine.ended());
            let patient = began.elapsed() < Duration::from_mins(2);
            assert!(patient, "the guest says nothing:\n{console}\n{}", autopsy::of(machine));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The guest noticed nothing: no word of complaint, and the line of a tick is the same each time that it was said.
    pub(crate) fn assert_unnoticed(&self, machine: &KvmMachine) {
        let console = String::from_utf8_lossy(&machine.console()).into_owned();
        for complaint in ["corrupt", "CORRUPT", "BUG:", "WARNING:", "lockup", "stall", "Oops", "segfault"] {
            assert!(!console.contains(complaint), "{complaint}:\n{console}");
        }
        let mut said = BTreeMap::new();
        for (tick, line) in self.ticks(machine) {
            let first: &String = said.entry(tick).or_insert_with(|| line.clone());
            assert_eq!(*first, line, "tick {tick} was another one the second time:\n{console}");
        }
    }

    /// Waits until the running guest tells its clocks anew: wall and monotonic, in milliseconds.
    pub(crate) fn wait_clocks(&self, machine: &mut KvmMachine) -> (u64, u64) {
        let clocks = |machine: &KvmMachine| {
            let console = machine.console();
            let from = self.cuts.last().copied().unwrap_or(0).min(console.len());
            let text = String::from_utf8_lossy(&console[from..]).into_owned();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]).to_owned();
            whole.lines().filter_map(clock_line).collect::<Vec<_>>()
        };
        let before = clocks(machine).len();
        let began = Instant::now();
        loop {
            let told = clocks(machine);
            if let Some(last) = told.get(before..).and_then(<[_]>::last) {
                return *last;
            }
            assert!(began.elapsed() < Duration::from_mins(2), "the guest tells no time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The ticks that were said, with their whole lines.
    pub(crate) fn ticks(&self, machine: &KvmMachine) -> Vec<(u64, String)> {
        let console = machine.console();
        let mut starts = vec![0];
        starts.extend(self.cuts.iter().copied().filter(|cut| *cut <= console.len()));
        let ends = starts.iter().skip(1).copied().chain([console.len()]);
        let mut ticks = Vec::new();
        for (part, (start, end)) in starts.iter().zip(ends).enumerate() {
            let text = String::from_utf8_lossy(&console[*start..end]).into_owned();
            // The last piece is no line yet, and after a cut the first is none of its own.
            let lines = text.split('\n').skip(usize::from(part > 0));
            let mut lines: Vec<_> = lines.map(str::trim_end).collect();
            lines.pop();
            for line in lines.into_iter().filter(|line| line.starts_with("tick ") && line.ends_with(" ok")) {
                if let Some(tick) = line.split(' ').nth(1).and_then(|tick| tick.parse().ok()) {
                    ticks.push((tick, line.to_owned()));
                }
            }
        }
        ticks
    }
}

fn clock_line(line: &str) -> Option<(u64, u64)> {
    let mut words = line.trim_end().strip_prefix("clock wall ")?.split(" monotonic ");
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
