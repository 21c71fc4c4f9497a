use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_guest::{Gpa, Machine as _, MachineError, MemoryIo as _, MemoryView, PAGE_SIZE, StateIo as _};
use retrovisor_machine::kvm::bare::{self, Writing};
use retrovisor_machine::kvm::{KvmConfig, KvmMachine, MemorySource, Template, compare_states, memory_layout};
use retrovisor_snapshot::{Access, CheckpointRequest, CurrentPolicy, Recorder, RollbackRequest, Store};

use crate::held::Held;

const ROLLBACKS: usize = 400;
/// After which nothing may grow any more.
const WARM: usize = 100;

fn config(memory: MemorySource) -> KvmConfig {
    KvmConfig {
        name: "bare".into(),
        layout: memory_layout(64 << 20).unwrap(),
        memory,
        vcpus: 2,
        disks: Vec::new(),
        boot: bare::writer(),
        nets: Vec::new(),
        channel: false,
        paused: true,
    }
}

fn launch() -> Option<KvmMachine> {
    match KvmMachine::launch(&config(MemorySource::Fresh)) {
        Ok(machine) => Some(machine),
        Err(error @ (MachineError::Config { .. } | MachineError::Unsupported { .. })) => {
            eprintln!("SKIPPED: no KVM for a bare guest: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn wait_rounds(machine: &KvmMachine, more: u64) {
    let begun = Instant::now();
    for vcpu in 0..2 {
        let until = bare::rounds(machine, vcpu).unwrap() + more;
        while bare::rounds(machine, vcpu).unwrap() < until {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", machine.ended());
            std::thread::yield_now();
        }
    }
}

fn assert_alike(one: &dyn MemoryView, other: &dyn MemoryView) {
    let (mut left, mut right) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    for gfn in one.layout().gfns() {
        one.read_page(gfn, &mut left).unwrap();
        other.read_page(gfn, &mut right).unwrap();
        assert!(left == right, "{gfn:?}");
    }
}

#[test]
fn staged_rollbacks_to_one_point_give_the_same_guest_and_nothing_grows() {
    let Some(mut machine) = launch() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    store.set_page_cache_bytes_max(4 << 20);
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let writing = Writing { first: Gpa(4 << 20), pages: 50, stride_bytes: 8192, idle_turns: 0, rounds: 0 };
    bare::assign(&mut machine, &writing).unwrap();
    machine.resume().unwrap();
    wait_rounds(&machine, 3);
    let target = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record.id;
    let (view, state) = (store.view(target).unwrap(), store.state(target).unwrap());
    let request = RollbackRequest { current: CurrentPolicy::Staged, ..RollbackRequest::default() };
    let mut held = None;
    for turn in 0..ROLLBACKS {
        if turn % 10 == 0 {
            // It stays paused, so that it can be looked at.
            machine.pause().unwrap();
        }
        let report = recorder.rollback(&mut machine, target, &request).unwrap();
        if turn % 10 == 0 {
            assert!(turn == 0 || report.pages_written > 0, "the guest wrote nothing");
            assert_alike(&view, machine.memory());
            let now = machine.capture_state().unwrap();
            assert_eq!(compare_states(&state, &now).unwrap(), Vec::<String>::new(), "turn {turn}");
            machine.resume().unwrap();
        }
        wait_rounds(&machine, 1);
        if turn == WARM {
            held = Some(Held::now());
        }
    }
    Held::now().assert_not_grown(&held.unwrap(), 16 << 10);
    let left = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name());
    let markers: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("moving-")).collect();
    assert!(markers.is_empty(), "{markers:?}");
}

#[test]
fn branches_of_a_checkpoint_go_on_from_there_each_by_itself() {
    let Some(mut machine) = launch() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let writing = Writing { first: Gpa(4 << 20), pages: 50, stride_bytes: 4096, idle_turns: 0, rounds: 0 };
    bare::assign(&mut machine, &writing).unwrap();
    machine.resume().unwrap();
    wait_rounds(&machine, 3);
    let target = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record.id;
    wait_rounds(&machine, 3);
    let view = store.view(target).unwrap();
    let state = store.state(target).unwrap();
    let template = Template::of(&view).unwrap();
    let mut branches: Vec<_> = (0..3)
        .map(|_| KvmMachine::launch(&config(MemorySource::Template(template.clone()))).unwrap())
        .collect();
    for branch in &mut branches {
        assert_alike(&view, branch.memory());
        assert!(branch.resume().is_err(), "it has no state yet");
        branch.apply_state(&state, retrovisor_guest::ClockPolicy::StandStill).unwrap();
        let now = branch.capture_state().unwrap();
        assert_eq!(compare_states(&state, &now).unwrap(), Vec::<String>::new());
    }
    branches[0].resume().unwrap();
    branches[1].resume().unwrap();
    wait_rounds(&branches[0], 5);
    wait_rounds(&branches[1], 2);
    wait_rounds(&machine, 1);
    // What the others wrote is theirs.
    assert_alike(&view, branches[2].memory());
    branches[0].pause().unwrap();
    let layout = view.layout().clone();
    let mut dirty = retrovisor_guest::PageSet::empty(&layout);
    branches[0].take_dirty(&mut dirty).unwrap();
    assert_eq!(dirty.len(), layout.pages(), "nobody has looked at this machine before");
}
