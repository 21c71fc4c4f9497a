//! Vector registers (AVX, AVX-512): what a guest keeps in them is there after pauses, rollbacks, and in another
//! machine.

use std::time::{Duration, Instant};

use retrovisor_guest::{
    ClockPolicy, Gfn, Machine as _, MemoryIo as _, MemoryLayout, PageContent, StateIo as _,
};
use retrovisor_machine::kvm::bare::{Registers, registers, vectors};
use retrovisor_machine::kvm::{KvmMachine, compare_states};

use crate::bare;
use crate::past::Past;

const VCPUS: u32 = 2;
const TURNS: u64 = 300;
/// In XCR0.
const AVX: u64 = 1 << 2;
const AVX_512: u64 = 0b111 << 5;

/// The guest, running; `None`, with a message, without KVM or AVX.
fn launch() -> Option<KvmMachine> {
    let mut machine = bare::launch_boot(vectors(), MemoryLayout::flat(4 << 20).unwrap(), VCPUS)?;
    machine.resume().unwrap();
    let began = Instant::now();
    while all(&machine).iter().any(|vcpu| vcpu.rounds < 3) {
        if all(&machine).iter().any(|vcpu| vcpu.has_none) {
            eprintln!("SKIPPED: this host's KVM offers guests no AVX");
            return None;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?} {:?}", all(&machine), machine.ended());
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(machine)
}

fn all(machine: &KvmMachine) -> Vec<Registers> {
    (0..VCPUS.into()).map(|vcpu| registers(machine, vcpu).unwrap()).collect()
}

fn assert_right(machine: &KvmMachine, when: &str) {
    let all = all(machine);
    assert!(all.iter().all(|vcpu| vcpu.wrong == 0), "{when}: {all:?}");
}

#[test]
fn vector_registers_go_back_with_the_guest() {
    let Some(mut machine) = launch() else { return };
    let parts = all(&machine)[0].parts;
    assert_ne!(parts & AVX, 0);
    eprintln!("vector registers: AVX{}", if parts & AVX_512 == AVX_512 { " and AVX-512" } else { "" });
    machine.pause().unwrap();
    let past = Past::of(&mut machine);
    let stood = all(&machine);
    let mut went = 0;
    for turn in 0..TURNS {
        machine.resume().unwrap();
        std::thread::sleep(Duration::from_micros(200 + 37 * (turn % 60)));
        machine.pause().unwrap();
        assert_right(&machine, "on the way");
        went += u64::from(all(&machine) != stood);
        if turn % 2 == 0 {
            // Equal parts are not written then.
            let _now = machine.capture_state().unwrap();
        }
        past.put_back(&mut machine, ClockPolicy::StandStill);
        assert_eq!(all(&machine), stood, "turn {turn}");
        let now = machine.capture_state().unwrap();
        assert_eq!(compare_states(&past.state, &now).unwrap(), Vec::<String>::new(), "turn {turn}");
    }
    assert!(went > TURNS / 2, "the guest's registers changed {went} times only");
    machine.resume().unwrap();
    bare::wait_rounds(&machine, VCPUS.into(), 3);
    assert_right(&machine, "after all");
}

#[test]
fn vector_registers_go_into_another_machine() {
    let Some(mut machine) = launch() else { return };
    machine.pause().unwrap();
    let past = Past::of(&mut machine);
    let stood = all(&machine);
    drop(machine);
    let mut machine = launch().unwrap();
    machine.pause().unwrap();
    for (gfn, page) in (0..).map(Gfn).zip(past.pages()) {
        machine.write_page(gfn, PageContent::Data(page)).unwrap();
    }
    machine.apply_state(&past.state, ClockPolicy::StandStill).unwrap();
    assert_eq!(all(&machine), stood);
    machine.resume().unwrap();
    bare::wait_rounds(&machine, VCPUS.into(), 3);
    assert_right(&machine, "in another machine");
}
