use retrovisor_guest::{ClockPolicy, Gfn, Gpa, Machine as _, PAGE_SIZE, PageContent, PageSet};

use crate::bare;

const FIRST: Gpa = Gpa(0x20_0000);
const PAGES: u64 = 32;

#[test]
fn rolling_back_in_place_gives_the_same_memory_and_state_each_time() {
    let layout = retrovisor_guest::MemoryLayout::flat(16 << 20).unwrap();
    let Some(mut machine) = bare::launch(layout.clone(), 2) else { return };
    bare::tell(&mut machine, FIRST, PAGES, 4096);
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 5);
    machine.pause().unwrap();
    let mut dirty = PageSet::empty(&layout);
    machine.take_dirty(&mut dirty).unwrap();
    let state = machine.capture_state().unwrap();
    let pages: Vec<[u8; PAGE_SIZE]> = layout
        .gfns()
        .map(|gfn| {
            let mut page = [0; PAGE_SIZE];
            machine.memory().read_page(gfn, &mut page).unwrap();
            page
        })
        .collect();
    let hash = bare::memory_hash(&machine, layout.gfns());
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for turn in 0..300 {
        machine.resume().unwrap();
        bare::wait_rounds(&machine, 2, 1);
        machine.pause().unwrap();
        dirty.clear();
        machine.take_dirty(&mut dirty).unwrap();
        assert!(dirty.len() > PAGES, "the guest wrote");
        for index in dirty.indices() {
            let page = &pages[usize::try_from(index).unwrap()];
            machine.write_page(Gfn(index), PageContent::Data(page)).unwrap();
        }
        machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
        if turn % 50 == 0 {
            assert_eq!(bare::memory_hash(&machine, layout.gfns()), hash, "turn {turn}");
        }
        let now = machine.capture_state().unwrap();
        assert_eq!(now.vcpus, state.vcpus, "turn {turn}");
    }
    assert_eq!(descriptors(), before);
}
