//! The contract of `take_dirty` on KVM's log: a frame that was read or written stays unchanged until it is reported.

use proptest::prelude::*;
use retrovisor_guest::{
    Gfn, Gpa, Machine as _, MemoryIo as _, MemoryLayout, PAGE_SIZE, PageContent, PageSet, RunState,
};
use retrovisor_scripted::KnownFrames;

use crate::bare::{self, MAIL};

/// Frames that the guest writes.
const FRAMES: u64 = 6;
const FIRST: Gpa = Gpa(0x20_0000);

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The vCPU writes the first frames, round after round, until the next pause.
    GuestRuns(u64),
    /// Restores the bytes that a frame had when it was first read.
    DriverWrites(u64),
    Reads(u64),
    TakesWhileRunning,
    Takes,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..=FRAMES).prop_map(Step::GuestRuns),
        4 => (0..FRAMES).prop_map(Step::DriverWrites),
        4 => (0..FRAMES).prop_map(Step::Reads),
        2 => Just(Step::TakesWhileRunning),
        4 => Just(Step::Takes),
    ]
}

#[test]
fn what_was_read_or_written_stays_so_until_the_frame_is_reported() {
    let layout = MemoryLayout::flat(64 << 20).unwrap();
    let Some(mut machine) = bare::launch(layout.clone(), 1) else { return };
    let frame = |number: u64| Gfn(FIRST.gfn().0 + number);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
    let machine = std::cell::RefCell::new(&mut machine);
    let run = |steps: Vec<Step>| {
        let machine = &mut **machine.borrow_mut();
        let mut known = KnownFrames::new(&layout);
        let old: Vec<_> = (0..FRAMES)
            .map(|number| {
                let mut page = [0; PAGE_SIZE];
                machine.memory().read_page(frame(number), &mut page).unwrap();
                page
            })
            .collect();
        for step in steps {
            match step {
                Step::GuestRuns(pages) => {
                    machine.pause().unwrap();
                    bare::assign(machine, FIRST, pages, 4096);
                    known.read(machine.memory(), MAIL.gfn()).unwrap();
                    machine.resume().unwrap();
                    bare::wait_rounds(machine, 1, 2);
                }
                Step::DriverWrites(number) => {
                    machine.pause().unwrap();
                    let page = &old[usize::try_from(number).unwrap()];
                    machine.write_page(frame(number), PageContent::Data(page)).unwrap();
                    known.wrote(frame(number), page);
                }
                Step::Reads(number) => known.read(machine.memory(), frame(number)).unwrap(),
                Step::TakesWhileRunning | Step::Takes => {
                    let is_exact = matches!(step, Step::Takes);
                    if is_exact {
                        machine.pause().unwrap();
                    }
                    let mut found = PageSet::empty(&layout);
                    machine.take_dirty(&mut found).unwrap();
                    known.reported(&found);
                    // The memory of a running guest changes while it is compared.
                    if machine.run_state() == RunState::Paused {
                        prop_assert_eq!(known.wrong(machine.memory()).unwrap(), []);
                    }
                }
            }
        }
        machine.pause().unwrap();
        Ok(())
    };
    runner.run(&prop::collection::vec(step(), 0..30), run).unwrap();
}
