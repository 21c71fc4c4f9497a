//! Repeated rollbacks in place: the guest is the same each time, and this process does not use more resources.

use std::time::{Duration, Instant};

use retrovisor_guest::{
    ClockPolicy, Gpa, Machine as _, MemoryIo as _, MemoryLayout, PAGE_SIZE, StateIo as _,
};
use retrovisor_machine::kvm::compare_states;

use crate::bare;
use crate::held::Held;
use crate::past::Past;

const FIRST: Gpa = Gpa(0x20_0000);
const PAGES: u64 = 16;

/// Allocators keep some memory.
const KEPT_KIB: u64 = 4096;

#[test]
fn ten_thousand_rollbacks_to_one_point_give_the_same_guest_each_time() {
    let layout = MemoryLayout::flat(4 << 20).unwrap();
    let Some(mut machine) = bare::launch(layout.clone(), 2) else { return };
    bare::assign(&mut machine, FIRST, PAGES, 4096);
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 5);
    machine.pause().unwrap();
    let past = Past::of(&mut machine);
    let mut held = None;
    let mut page = [0; PAGE_SIZE];
    let mut wrote = 0;
    for turn in 0..10_000 {
        machine.resume().unwrap();
        if turn % 100 == 0 {
            bare::wait_rounds(&machine, 2, 1);
        }
        machine.pause().unwrap();
        wrote += past.put_back(&mut machine, ClockPolicy::StandStill).len();
        for (gfn, expected) in layout.gfns().zip(past.pages()) {
            machine.memory().read_page(gfn, &mut page).unwrap();
            assert!(page == *expected, "turn {turn}: {gfn:?} is another page");
        }
        let now = machine.capture_state().unwrap();
        assert_eq!(compare_states(&past.state, &now).unwrap(), Vec::<String>::new(), "turn {turn}");
        if turn == 100 {
            held = Some(Held::now());
        }
    }
    assert!(wrote > 100 * PAGES, "the guest wrote");
    Held::now().assert_not_grown(&held.unwrap(), KEPT_KIB);
}

#[test]
fn a_machine_that_ends_leaves_nothing_behind() {
    let layout = MemoryLayout::flat(64 << 20).unwrap();
    let one = || {
        let Some(mut machine) = bare::launch(layout.clone(), 4) else { return false };
        machine.resume().unwrap();
        bare::wait_rounds(&machine, 4, 1);
        true
    };
    if !one() {
        return;
    }
    let held = Held::now();
    for _ in 0..20 {
        one();
    }
    // Threads that were joined are listed until the system has cleared them away.
    let began = Instant::now();
    while Held::now().threads != held.threads && began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    Held::now().assert_not_grown(&held, KEPT_KIB);
}
