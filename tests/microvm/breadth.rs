//! Many vCPUs and much memory.

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_guest::{Gfn, Gpa, Machine as _, MemoryIo as _, MemoryView, PAGE_SIZE};
use retrovisor_machine::kvm::{KvmConfig, KvmMachine, memory_layout};
use retrovisor_snapshot::{Access, CheckpointRequest, CurrentPolicy, Recorder, RollbackRequest, Store};

use crate::listener::Listener;
use crate::{autopsy, guest, lab};

const MANY_VCPUS: u32 = 8;
const ROLLBACKS: usize = 5;
/// Two slots: 3 GiB, and what is left above 4 GiB.
const MUCH_MEMORY_MIB: u64 = 3584;
const HIGH: Gpa = Gpa(4 << 30);
/// A vCPU that shares a core with three others, in the lab.
const PATIENCE: Duration = Duration::from_mins(4);

#[test]
fn eight_vcpus_with_a_workload_each_go_back_and_notice_nothing() {
    if !lab::boots_here() || !lab::is_long("eight vCPUs") {
        return;
    }
    let config = guest::config("many", "console-shell tell-time");
    let mut machine = KvmMachine::launch(&KvmConfig { vcpus: MANY_VCPUS, ..config }).unwrap();
    let mut listener = Listener::default();
    listener.wait_tick(&mut machine);
    // The guest's own workload goes where it likes; each of these stays on a vCPU.
    for vcpu in 0..MANY_VCPUS {
        let line = format!(
            "mkdir /run/v{vcpu}; taskset -c {vcpu} workload --dir /run/v{vcpu} | sed 's/^/v{vcpu}: /' &\n"
        );
        assert_eq!(machine.console_input().type_in(line.as_bytes()), line.len());
    }
    wait_all(&mut machine, &listener);
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(store, id).unwrap();
    let mut taken = Vec::new();
    for _ in 0..ROLLBACKS {
        let report = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
        taken.push(report.record.id);
        std::thread::sleep(Duration::from_secs(1));
    }
    for hop in 0..ROLLBACKS {
        let target = taken[hop * 3 % ROLLBACKS];
        listener.back(&mut recorder, &mut machine, target);
        wait_all(&mut machine, &listener);
        listener.assert_unnoticed(&machine);
    }
}

/// Waits until every workload has ticked since the last cut.
fn wait_all(machine: &mut KvmMachine, listener: &Listener) {
    let began = Instant::now();
    loop {
        let ticked = listener.ticks_since_cut(machine);
        if ticked.len() == 1 + usize::try_from(MANY_VCPUS).unwrap() {
            return;
        }
        if began.elapsed() > PATIENCE {
            let said = String::from_utf8_lossy(&machine.console()).into_owned();
            panic!("only {ticked:?} {:?}\n{said}\n{}", machine.ended(), autopsy::of(machine));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn memory_above_4_gib_goes_back_with_the_rest() {
    if !lab::boots_here() || !lab::is_long("a guest with more than 3 GiB of memory") {
        return;
    }
    let layout = memory_layout(MUCH_MEMORY_MIB << 20).unwrap();
    let config = KvmConfig { layout, ..guest::config("large", "tell-time") };
    let mut machine = KvmMachine::launch(&config).unwrap();
    let mut listener = Listener::default();
    listener.wait_tick(&mut machine);
    machine.pause().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(store, id).unwrap();
    let target = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap().record.id;
    let stood = high_pages(machine.memory());
    let used = stood.iter().filter(|page| **page != 0).count();
    for _ in 0..ROLLBACKS {
        machine.resume().unwrap();
        listener.wait_tick(&mut machine);
        machine.pause().unwrap();
        let now = high_pages(machine.memory());
        let changed = stood.iter().zip(&now).filter(|(then, now)| then != now).count();
        println!("above 4 GiB {used} pages were used, {changed} changed in a second");
        assert!(changed > 100, "the guest does not use that memory: {used} pages");
        let request = RollbackRequest { current: CurrentPolicy::Staged, ..RollbackRequest::default() };
        listener.back_by(&mut recorder, &mut machine, target, &request);
        assert!(high_pages(machine.memory()) == stood, "other memory than before");
    }
    machine.resume().unwrap();
    listener.wait_tick(&mut machine);
    listener.assert_unnoticed(&machine);
}

/// A hash of each page above 4 GiB, 0 of one that is all zeros.
fn high_pages(memory: &dyn MemoryView) -> Vec<u64> {
    let mut page = [0; PAGE_SIZE];
    let high = |gfn: &Gfn| *gfn >= HIGH.gfn();
    let hash = |gfn| {
        memory.read_page(gfn, &mut page).unwrap();
        if page.iter().all(|byte| *byte == 0) {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(&page);
        hasher.finish() | 1
    };
    memory.layout().gfns().filter(high).map(hash).collect()
}
