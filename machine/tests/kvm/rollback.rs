use retrovisor_guest::{ClockPolicy, Gpa, Machine as _, MemoryLayout};

use crate::bare;
use crate::past::Past;

const FIRST: Gpa = Gpa(0x20_0000);
const PAGES: u64 = 32;

#[test]
fn rolling_back_in_place_gives_the_same_memory_and_state_each_time() {
    let layout = MemoryLayout::flat(16 << 20).unwrap();
    let Some(mut machine) = bare::launch(layout.clone(), 2) else { return };
    bare::tell(&mut machine, FIRST, PAGES, 4096);
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 5);
    machine.pause().unwrap();
    let past = Past::of(&mut machine);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for turn in 0..300 {
        machine.resume().unwrap();
        bare::wait_rounds(&machine, 2, 1);
        machine.pause().unwrap();
        let dirty = past.put_back(&mut machine, ClockPolicy::StandStill);
        assert!(dirty.len() > PAGES, "the guest wrote");
        if turn % 50 == 0 {
            assert_eq!(bare::memory_hash(&machine, layout.gfns()), past.hash, "turn {turn}");
        }
        let now = machine.capture_state().unwrap();
        assert_eq!(now.vcpus, past.state.vcpus, "turn {turn}");
    }
    assert_eq!(descriptors(), before);
}
