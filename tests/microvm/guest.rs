use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use retrovisor_guest::{MemoryLayout, RunState};
use retrovisor_machine::kvm::{Boot, KvmConfig, KvmMachine};
use retrovisor_tests::GuestImage;

pub(crate) const VCPUS: u32 = 2;

/// The test guest in a microVM; it waits for its first resume when `paused`.
pub(crate) fn launch(paused: bool) -> KvmMachine {
    let image = GuestImage::files().unwrap();
    KvmMachine::launch(&KvmConfig {
        name: "linux".into(),
        layout: MemoryLayout::flat(256 << 20).unwrap(),
        vcpus: VCPUS,
        boot: Boot::Linux {
            kernel: image.kernel,
            initrd: Some(image.initrd),
            append: "console=ttyS0 quiet panic=-1".into(),
        },
        paused,
    })
    .unwrap()
}

/// The last tick that the guest said.
pub(crate) fn last_tick(machine: &KvmMachine) -> Option<u64> {
    ticks(&console(machine)).last().map(|(tick, _)| *tick)
}

/// Waits until the running guest says another tick.
pub(crate) fn wait_tick(machine: &mut KvmMachine) -> u64 {
    use retrovisor_guest::Machine as _;
    let before = ticks(&console(machine)).len();
    let began = Instant::now();
    loop {
        if ticks(&console(machine)).len() > before {
            return last_tick(machine).unwrap();
        }
        assert_ne!(machine.run_state(), RunState::Gone, "{:?}\n{}", machine.ended(), console(machine));
        assert!(began.elapsed() < Duration::from_mins(2), "the guest says nothing:\n{}", console(machine));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The guest noticed nothing: no word of complaint, and the line of a tick is the same each time that it was said.
pub(crate) fn assert_unnoticed(machine: &KvmMachine) {
    let console = console(machine);
    for complaint in ["corrupt", "CORRUPT", "BUG:", "WARNING:", "lockup", "stall", "Oops", "segfault"] {
        assert!(!console.contains(complaint), "{complaint}:\n{console}");
    }
    let mut said = BTreeMap::new();
    for (tick, line) in ticks(&console) {
        let first = said.entry(tick).or_insert(line);
        assert_eq!(*first, line, "tick {tick} was another one the second time");
    }
}

fn console(machine: &KvmMachine) -> String {
    String::from_utf8_lossy(&machine.console()).into_owned()
}

/// Whole lines of ticks; a rollback may cut one in its middle.
fn ticks(console: &str) -> Vec<(u64, &str)> {
    let whole = |line: &&str| line.starts_with("tick ") && line.ends_with(" ok");
    let lines = console.split('\n').map(str::trim_end).filter(whole);
    lines.filter_map(|line| Some((line.split(' ').nth(1)?.parse().ok()?, line))).collect()
}
