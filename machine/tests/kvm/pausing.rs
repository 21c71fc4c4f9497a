use retrovisor_guest::{
    ClockPolicy, Gpa, Machine as _, MachineError, MemoryIo as _, MemoryLayout, PageSet, RunState,
    StateIo as _,
};

use crate::bare;

#[test]
fn a_bare_guest_runs_stands_still_and_runs_on() {
    let Some(mut machine) = bare::launch(MemoryLayout::flat(64 << 20).unwrap(), 2) else {
        return;
    };
    assert_eq!(machine.run_state(), RunState::Paused);
    bare::assign(&mut machine, Gpa(0x20_0000), 16, 4096);
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 10);
    assert!(matches!(machine.capture_state(), Err(MachineError::RunState { .. })));
    for _ in 0..100 {
        machine.pause().unwrap();
        let stood = bare::rounds(&machine, 0);
        std::thread::yield_now();
        assert_eq!(bare::rounds(&machine, 0), stood);
        machine.resume().unwrap();
        bare::wait_rounds(&machine, 2, 1);
    }
    assert_eq!(machine.console(), b"upup"[..].to_vec(), "both vCPUs reached the serial port");
    assert_eq!(machine.ended(), None);
}

#[test]
fn the_dirty_log_has_what_the_guest_wrote_in_every_slot() {
    let layout = bare::split_layout();
    let Some(mut machine) = bare::launch(layout.clone(), 1) else { return };
    let mut dirty = PageSet::empty(&layout);
    machine.take_dirty(&mut dirty).unwrap();
    assert_eq!(dirty.len(), layout.pages(), "at first all is dirty");
    // Twenty pages below the hole's end… and twenty above 4 GiB.
    for first in [Gpa((3 << 30) - 20 * 4096), Gpa(4 << 30)] {
        dirty.clear();
        machine.take_dirty(&mut dirty).unwrap();
        dirty.clear();
        bare::assign(&mut machine, first, 10, 8192);
        machine.resume().unwrap();
        bare::wait_rounds(&machine, 1, 3);
        machine.pause().unwrap();
        machine.take_dirty(&mut dirty).unwrap();
        let written: Vec<_> = dirty.iter().filter(|gfn| *gfn >= first.gfn()).collect();
        let expected: Vec<_> = (0..10).map(|page| retrovisor_guest::Gfn(first.gfn().0 + page * 2)).collect();
        assert_eq!(written, expected);
        assert!(dirty.contains(bare::MAIL.gfn()));
    }
}

#[test]
fn half_of_a_state_is_nothing_to_run_on() {
    let Some(mut machine) = bare::launch(MemoryLayout::flat(64 << 20).unwrap(), 2) else {
        return;
    };
    bare::assign(&mut machine, Gpa(0x20_0000), 4, 4096);
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 1);
    machine.pause().unwrap();
    let state = machine.capture_state().unwrap();
    let mut damaged = state.clone();
    let serial = damaged.sections.iter_mut().find(|section| section.format.contains("serial")).unwrap();
    serial.bytes.truncate(3);
    assert!(machine.apply_state(&damaged, ClockPolicy::StandStill).is_err());
    assert!(matches!(machine.resume(), Err(MachineError::RunState { needed: "restored", .. })));
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    machine.resume().unwrap();
    bare::wait_rounds(&machine, 2, 1);
}
