use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use retrovisor_guest::{Machine as _, MemoryLayout, RunState};
use retrovisor_machine::kvm::{Boot, DiskConfig, KvmConfig, KvmMachine, MemorySource};
use retrovisor_tests::GuestImage;

pub(crate) const VCPUS: u32 = 2;

/// The test guest in a microVM, with its disk; it waits for its first resume when `paused`.
pub(crate) fn launch(paused: bool) -> KvmMachine {
    KvmMachine::launch(&KvmConfig { paused, ..config("linux", "") }).unwrap()
}

/// The test guest in a microVM; `append` is added to the kernel's command line.
pub(crate) fn config(name: &str, append: &str) -> KvmConfig {
    let image = GuestImage::files().unwrap();
    KvmConfig {
        name: name.into(),
        layout: MemoryLayout::flat(256 << 20).unwrap(),
        memory: MemorySource::Fresh,
        vcpus: VCPUS,
        disks: vec![DiskConfig {
            base: Some(image.disk),
            size_bytes: None,
            read_only: false,
            changes_dir: std::env::temp_dir(),
        }],
        boot: Boot::Linux {
            kernel: image.kernel,
            initrd: Some(image.initrd),
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
            assert!(began.elapsed() < Duration::from_mins(2), "the guest says nothing:\n{console}");
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
