//! The machine meets the contracts of `Machine`, and follows its script.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use proptest::prelude::*;
use retrovisor_guest::{
    Capabilities, ClockPolicy, DiskIo as _, Gfn, Gpa, GuestEvent, Machine as _, MachineError, MachineState,
    MemoryIo as _, MemoryLayout, PAGE_SIZE, PageContent, PageSet, RunState, StateIo as _, VcpuRegisters,
};
use retrovisor_scripted::{Action, KnownFrames, MemoryMachine, Method};

const PATIENCE: Duration = Duration::from_secs(30);

fn machine() -> MemoryMachine {
    MemoryMachine::new("m", MemoryLayout::flat(8 * 4096).unwrap()).unwrap()
}

fn dirty(machine: &mut MemoryMachine) -> Vec<u64> {
    let mut set = PageSet::empty(&machine.identity().layout);
    machine.take_dirty(&mut set).unwrap();
    set.iter().map(|gfn| gfn.0).collect()
}

#[test]
fn dirty_is_everything_first_and_then_what_was_poked() {
    let mut machine = machine();
    assert_eq!(dirty(&mut machine).len(), 8);
    machine.poke(Gpa(2 * 4096 - 1), b"ab").unwrap();
    assert_eq!(dirty(&mut machine), [1, 2]);
    assert!(dirty(&mut machine).is_empty());
    let mut bytes = [0; 4];
    machine.memory().read(Gpa(2 * 4096 - 2), &mut bytes).unwrap();
    assert_eq!(&bytes, b"\0ab\0");
    assert!(machine.poke(Gpa(8 * 4096 - 1), b"ab").is_err());
}

#[test]
fn a_writer_waits_while_the_machine_is_paused() {
    let mut machine = machine();
    dirty(&mut machine);
    machine.pause().unwrap();
    let writer = machine.writer();
    let thread = std::thread::spawn(move || writer.poke(Gpa(3 * 4096), b"x"));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!thread.is_finished());
    assert!(dirty(&mut machine).is_empty());
    machine.resume().unwrap();
    thread.join().unwrap().unwrap();
    assert_eq!(dirty(&mut machine), [3]);
}

#[test]
fn a_state_goes_back_with_registers_devices_and_disk() {
    let mut machine = machine();
    assert!(matches!(machine.capture_state(), Err(MachineError::RunState { .. })));
    machine.pause().unwrap();
    machine.registers_mut().rip = 7;
    machine.device_mut().extend(b"uart");
    machine.disk_mut().extend(b"old");
    let state = machine.capture_state().unwrap();
    machine.registers_mut().rip = 8;
    machine.device_mut().clear();
    machine.disk_mut().extend(b"new");
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    assert_eq!(machine.registers_mut().rip, 7);
    assert_eq!(machine.device_mut(), b"uart");
    assert_eq!(machine.disk_mut(), b"old");
    machine.release_state(&state).unwrap();
    assert_eq!(machine.disk_snapshots(), 0);
    let again = machine.apply_state(&state, ClockPolicy::StandStill);
    assert!(matches!(again, Err(MachineError::Mismatch { .. })));
    let foreign = MachineState { vcpus: vec![VcpuRegisters::default(); 2], ..state };
    assert!(machine.apply_state(&foreign, ClockPolicy::StandStill).is_err());
}

#[test]
fn the_nth_call_fails_and_those_beside_it_do_not() {
    let mut machine = machine();
    let script = machine.script();
    machine.pause().unwrap();
    script.on(Method::WritePage, 2, Action::Fail);
    machine.write_page(Gfn(0), PageContent::Zero).unwrap();
    assert!(machine.write_page(Gfn(0), PageContent::Zero).is_err());
    machine.write_page(Gfn(0), PageContent::Zero).unwrap();
    assert_eq!(script.calls(Method::WritePage), 3);

    script.on(Method::TakeDirty, 1, Action::FailAfter);
    assert!(machine.take_dirty(&mut PageSet::empty(&machine.identity().layout.clone())).is_err());
    assert_eq!(dirty(&mut machine).len(), 8, "a call that fails loses nothing");
    script.on(Method::CaptureState, 1, Action::FailAfter);
    assert!(machine.capture_state().is_err());
    assert_eq!(machine.retained_disks().unwrap(), []);

    let state = machine.capture_state().unwrap();
    script.on(Method::ApplyState, 1, Action::FailAfter);
    assert!(machine.apply_state(&state, ClockPolicy::StandStill).is_err());
    assert!(matches!(machine.resume(), Err(MachineError::RunState { needed: "restored", .. })));
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    machine.resume().unwrap();
}

#[test]
fn a_call_that_hangs_goes_on_when_it_is_released() {
    let mut machine = machine();
    let script = machine.script();
    script.on(Method::Pause, 1, Action::Hang);
    let thread = std::thread::spawn(move || {
        machine.pause().unwrap();
        machine.run_state()
    });
    assert_eq!(script.wait_hanging(PATIENCE), Some(Method::Pause));
    assert_eq!(script.run_state(), RunState::Running);
    script.release();
    assert_eq!(thread.join().unwrap(), RunState::Paused);
    assert_eq!(script.wait_hanging(Duration::ZERO), None);
}

#[test]
fn a_call_panics_and_the_machine_can_be_used_on() {
    let mut machine = machine();
    machine.script().on(Method::Resume, 1, Action::Panic);
    let call = std::panic::AssertUnwindSafe(|| machine.resume());
    assert!(std::panic::catch_unwind(call).is_err());
    machine.resume().unwrap();
}

#[test]
fn a_guest_that_ended_comes_back_in_place_and_one_that_is_gone_does_not() {
    let mut machine = machine();
    let script = machine.script();
    machine.pause().unwrap();
    let state = machine.capture_state().unwrap();
    for ended in [RunState::PoweredOff, RunState::Panicked] {
        machine.resume().unwrap();
        script.report(GuestEvent::Panicked);
        script.on(Method::RunState, 1, Action::Enter(ended));
        assert_eq!(machine.run_state(), ended);
        assert_eq!(machine.events(), [GuestEvent::Panicked]);
        assert!(machine.resume().is_err());
        machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
        assert_eq!(machine.run_state(), RunState::Paused);
    }
    script.enter(RunState::Gone);
    for result in [machine.pause(), machine.resume(), machine.apply_state(&state, ClockPolicy::StandStill)] {
        assert!(matches!(result, Err(MachineError::Gone { .. })));
    }
}

#[test]
fn a_clock_that_cannot_jump_is_known_before_and_refused() {
    let mut machine = machine().with_capabilities(Capabilities::default());
    machine.pause().unwrap();
    let state = machine.capture_state().unwrap();
    assert!(machine.capabilities().check_clock(ClockPolicy::JumpToNow).is_err());
    assert!(machine.apply_state(&state, ClockPolicy::JumpToNow).is_err());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    GuestWrites(u64, u8),
    DriverWrites(u64, u8),
    Reads(u64),
    Takes,
    TakeFails,
    Pauses,
    Resumes,
}

fn step() -> impl Strategy<Value = Step> {
    let (frame, byte) = (|| 0..8_u64, || 0..3_u8);
    prop_oneof![
        6 => (frame(), byte()).prop_map(|(frame, byte)| Step::GuestWrites(frame, byte)),
        4 => (frame(), byte()).prop_map(|(frame, byte)| Step::DriverWrites(frame, byte)),
        6 => frame().prop_map(Step::Reads),
        4 => Just(Step::Takes),
        1 => Just(Step::TakeFails),
        2 => Just(Step::Pauses),
        2 => Just(Step::Resumes),
    ]
}

proptest! {
    #[test]
    fn what_was_read_or_written_stays_so_until_the_frame_is_reported(
        steps in prop::collection::vec(step(), 0..80)
    ) {
        let mut machine = machine();
        let layout = machine.identity().layout.clone();
        let mut known = KnownFrames::new(&layout);
        for step in steps {
            match step {
                Step::GuestWrites(frame, byte) if machine.run_state() == RunState::Running => {
                    machine.poke(Gfn(frame).gpa(), &[byte; PAGE_SIZE]).unwrap();
                }
                Step::DriverWrites(frame, byte) if machine.run_state() == RunState::Paused => {
                    machine.write_page(Gfn(frame), PageContent::Data(&[byte; PAGE_SIZE])).unwrap();
                    known.wrote(Gfn(frame), &[byte; PAGE_SIZE]);
                }
                Step::Reads(frame) => known.read(machine.memory(), Gfn(frame)).unwrap(),
                Step::Takes | Step::TakeFails => {
                    if matches!(step, Step::TakeFails) {
                        machine.script().on(Method::TakeDirty, 1, Action::FailAfter);
                    }
                    let mut found = PageSet::empty(&layout);
                    if machine.take_dirty(&mut found).is_ok() {
                        known.reported(&found);
                        prop_assert_eq!(known.wrong(machine.memory()).unwrap(), []);
                    }
                }
                Step::Pauses => machine.pause().unwrap(),
                Step::Resumes => machine.resume().unwrap(),
                Step::GuestWrites(..) | Step::DriverWrites(..) => {}
            }
        }
    }
}
