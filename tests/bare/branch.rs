//! Branches in worker processes: a second machine from a checkpoint of a first, both with a store.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_guest::{ClockPolicy, Gpa, Machine as _, MachineError, MemoryIo as _, RunState};
use retrovisor_machine::kvm::bare::{self, Writing};
use retrovisor_machine::kvm::{KvmConfig, Limits, MemorySource, RemoteConfig, RemoteMachine, memory_layout};
use retrovisor_snapshot::{
    Access, BranchRequest, CheckpointRequest, Recorder, RollbackRequest, Store, image_hash,
};
use retrovisor_tests::command_path;

/// Pages that the first guest fills before it is branched.
const PAGES: u64 = 2048;

fn config(dir: &Path, name: &str, awaits_state: bool) -> RemoteConfig {
    RemoteConfig {
        machine: KvmConfig {
            name: name.into(),
            layout: memory_layout(256 << 20).unwrap(),
            memory: MemorySource::Fresh,
            vcpus: 2,
            boot: bare::writer(),
            disks: Vec::new(),
            nets: Vec::new(),
            channel: false,
            paused: true,
        },
        program: command_path(),
        arguments: vec!["machine-worker".into()],
        runtime_dir: dir.join(name),
        awaits_state,
        detached: false,
        limits: Limits::of(name),
    }
}

fn wait_rounds(machine: &mut RemoteMachine, more: u64) {
    let begun = Instant::now();
    for vcpu in 0..2 {
        let until = bare::rounds(machine, vcpu).unwrap() + more;
        while bare::rounds(machine, vcpu).unwrap() < until {
            assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", machine.ended());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_branch_in_a_worker_goes_on_beside_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = match RemoteMachine::launch(&config(dir.path(), "first", false)) {
        Ok(machine) => machine,
        Err(error @ (MachineError::Config { .. } | MachineError::Unsupported { .. })) => {
            eprintln!("SKIPPED: no KVM for a bare guest: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let store = Arc::new(Store::open(&dir.path().join("store"), Access::Create).unwrap());
    let id = store.catalogue().add_machine(first.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let writing =
        Writing { first: Gpa(16 << 20), pages: PAGES / 2, stride_bytes: 4096, idle_turns: 0, rounds: 0 };
    bare::assign(&mut first, &writing).unwrap();
    first.resume().unwrap();
    wait_rounds(&mut first, 2);
    let origin = recorder.checkpoint(&mut first, &CheckpointRequest::default()).unwrap().record;
    let image = store.image_hash(origin.id).unwrap();
    wait_rounds(&mut first, 1);

    let begun = Instant::now();
    let mut branch = Recorder::begin_branch(&store, "second", origin.id, &BranchRequest::default()).unwrap();
    let begin_us = begun.elapsed().as_micros();
    let mut second = RemoteMachine::launch(&config(dir.path(), "second", true)).unwrap();
    let launched_us = begun.elapsed().as_micros();
    let report =
        branch.adopt(&mut second, ClockPolicy::StandStill, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(image_hash(second.memory()).unwrap(), image);
    let hashed = Instant::now();
    second.renew_generation_id().unwrap();
    let taken = branch.checkpoint(&mut second, &CheckpointRequest::default()).unwrap();
    second.detach().unwrap();
    second.resume().unwrap();
    println!(
        "{} pages: catalogue {begin_us} us, worker {} us, {:?}, first checkpoint to running {} us ({:?})",
        report.pages_written,
        launched_us - begin_us,
        report.timing,
        hashed.elapsed().as_micros(),
        taken.timing
    );
    assert!(report.pages_written >= PAGES / 2, "{report:?}");
    assert!((1..50).contains(&taken.record.dirty_pages), "only what was written since: {:?}", taken.record);
    assert!(taken.record.new_pages < 50, "{:?}", taken.record);
    assert_ne!(second.generation_id().unwrap(), first.generation_id().unwrap());
    assert_eq!(first.run_state(), RunState::Running);

    // Each goes on by itself, and back by itself.
    wait_rounds(&mut second, 2);
    wait_rounds(&mut first, 2);
    let later = branch.checkpoint(&mut second, &CheckpointRequest::default()).unwrap().record;
    assert_eq!(later.parent, Some(taken.record.id));
    second.pause().unwrap();
    let request = RollbackRequest::default();
    branch.rollback(&mut second, taken.record.id, &request).unwrap();
    assert_eq!(image_hash(second.memory()).unwrap(), store.image_hash(taken.record.id).unwrap());
    branch.undo(&mut second, &request).unwrap();
    second.resume().unwrap();
    wait_rounds(&mut second, 1);
    recorder.rollback(&mut first, origin.id, &request).unwrap();
    wait_rounds(&mut first, 1);

    // Its worker dies: it comes back from its own checkpoint.
    let machine = branch.machine();
    drop(branch);
    second.quit();
    let mut again = RemoteMachine::launch(&config(dir.path(), "second", true)).unwrap();
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    recorder.restore(&mut again, later.id, &request).unwrap();
    assert_eq!(image_hash(again.memory()).unwrap(), store.image_hash(later.id).unwrap());
    again.resume().unwrap();
    wait_rounds(&mut again, 1);
    wait_rounds(&mut first, 1);
    again.quit();
}
