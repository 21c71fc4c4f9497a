//! A second machine from a checkpoint, up to its first instruction.

use std::time::Instant;

use retrovisor_guest::{ClockPolicy, Machine as _, StateIo as _};
use retrovisor_machine::kvm::{KvmMachine, MemorySource, Template, bare};
use retrovisor_tests::Measured;

use super::lab::{Lab, Order, config, us};

const BRANCHES: usize = 20;

pub(crate) fn measure(lab: &mut Lab, measured: &mut Measured) {
    // A guest that counts all the time, so that its first instruction is seen.
    lab.go_on(&Lab::writing(0, Order::Sequential));
    lab.wait_rounds(10);
    let checkpoint = lab.checkpoint().record.id;
    lab.rest();
    let begun = Instant::now();
    let template = Template::of(&lab.store.view(checkpoint).unwrap()).unwrap();
    let state = lab.store.state(checkpoint).unwrap();
    measured.add("kvm.template_ms", "ms", us(begun.elapsed()) / 1e3);
    let mut branches = Vec::new();
    // Its guest waits for work without ever sleeping: on two cores it would take turns with the branches.
    lab.machine.pause().unwrap();
    for _ in 0..BRANCHES {
        let mut add = |name: &str, since: Instant| measured.add(name, "ms", us(since.elapsed()) / 1e3);
        let begun = Instant::now();
        let mut branch = KvmMachine::launch(&config(MemorySource::Template(template.clone()))).unwrap();
        add("kvm.branch_ms.launch", begun);
        let stood = bare::rounds(&branch, 0).unwrap();
        let applying = Instant::now();
        branch.apply_state(&state, ClockPolicy::StandStill).unwrap();
        add("kvm.branch_ms.apply", applying);
        let starting = Instant::now();
        branch.resume().unwrap();
        while bare::rounds(&branch, 0).unwrap() == stood {
            std::thread::yield_now();
        }
        add("kvm.branch_ms.first_instruction", starting);
        add("kvm.branch_ms", begun);
        branch.pause().unwrap();
        branches.push(branch);
    }
    // They lived at the same time.
    assert_eq!(branches.len(), BRANCHES);
    lab.machine.resume().unwrap();
}
