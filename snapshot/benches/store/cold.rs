//! Restoring from the packs, and queries of old checkpoints, by the length of the chain.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{Gfn, Machine, MemoryIo as _, MemoryLayout, PAGE_SIZE};
use retrovisor_scripted::MemoryMachine;
use retrovisor_snapshot::{
    Access, CheckpointId, CheckpointRequest, MachineId, Recorder, RollbackRequest, Store, image_hash,
};

use crate::guest::Guest;
use crate::table::Table;

const PAGES: u64 = 1 << 16;
const WRITES: u64 = 20;
/// The checkpoints at which restoring is measured; the last is for queries.
const LENGTHS: [usize; 4] = [10, 1_000, 5_000, 10_000];

pub(crate) fn measure(table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let layout = MemoryLayout::flat(PAGES * PAGE_SIZE as u64).unwrap();
    // With a disk whose blocks are in the store: another machine takes its checkpoints.
    let disk = || vec![0; 1 << 20];
    let mut machine = MemoryMachine::new("long", layout.clone()).unwrap().with_disk(disk());
    let twin = MemoryMachine::new("twin", layout).unwrap().with_disk(disk());
    let mut guest = Guest::new(5);
    for index in 0..PAGES {
        if guest.below(100) < 50 {
            machine.poke(Gfn(index).gpa(), &guest.page()).unwrap();
        }
    }
    let mut taken = 0;
    for length in LENGTHS {
        let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
        let add = |machine: &MemoryMachine| store.catalogue().add_machine(machine.identity()).unwrap().id;
        let known = store.catalogue().machines().unwrap();
        let id = known.first().map_or_else(|| add(&machine), |known| known.id);
        let twin_id = known.get(1).map_or_else(|| add(&twin), |known| known.id);
        let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
        while taken < length {
            for _ in 0..WRITES {
                machine.poke(Gfn(guest.below(PAGES)).gpa(), &guest.page()).unwrap();
            }
            drop(recorder.capture(&mut machine, &CheckpointRequest::default()).unwrap());
            taken += 1;
        }
        recorder.drain(&mut machine);
        let newest = recorder.position().unwrap().checkpoint;
        drop((recorder, store));
        if length == 10_000 {
            questions(table, dir.path(), id);
        } else {
            restore(table, dir.path(), twin_id, newest, length);
        }
    }
}

/// Into a new machine, by a store without caches (the host's page cache is not cleared).
fn restore(table: &mut Table, dir: &Path, twin: MachineId, target: CheckpointId, length: usize) {
    let (mut mbps, mut prefetched, mut map_ms) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        let store = Arc::new(Store::open(dir, Access::ReadWrite).unwrap());
        let layout = store.catalogue().machine_by_id(twin).unwrap().identity.layout;
        let twin_disk = vec![0; 1 << 20];
        let mut machine = MemoryMachine::new("twin", layout.clone()).unwrap().with_disk(twin_disk);
        let start = Instant::now();
        drop(store.view(target).unwrap());
        map_ms.push(start.elapsed().as_secs_f64() * 1e3);
        let mut recorder = Recorder::new(Arc::clone(&store), twin).unwrap();
        let report = recorder.restore(&mut machine, target, &RollbackRequest::default()).unwrap();
        mbps.push((report.pages_written * PAGE_SIZE as u64) as f64 / report.timing.write_us as f64);
        if round == 0 {
            assert_eq!(store.image_hash(target).unwrap(), image_hash(machine.memory()).unwrap());
        }
        drop((recorder, store));

        // In place: every page that differs is read before the guest is stopped.
        let store = Arc::new(Store::open(dir, Access::ReadWrite).unwrap());
        let mut recorder = Recorder::new(Arc::clone(&store), twin).unwrap();
        machine.resume().unwrap();
        for gfn in layout.gfns() {
            machine.poke(gfn.gpa(), &[0; PAGE_SIZE]).unwrap();
        }
        recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
        let report = recorder.rollback(&mut machine, target, &RollbackRequest::default()).unwrap();
        let took_us = report.timing.prefetch_us + report.timing.write_us;
        prefetched.push((report.pages_written * PAGE_SIZE as u64) as f64 / took_us as f64);
    }
    table.add(&format!("rollback.cold/{length}/new-machine"), "MB/s", mbps);
    table.add(&format!("rollback.cold/{length}"), "MB/s", prefetched);
    table.add(&format!("rollback.cold.map_ms/{length}"), "ms", map_ms);
}

fn questions(table: &mut Table, dir: &Path, id: MachineId) {
    let store = Arc::new(Store::open(dir, Access::ReadOnly).unwrap());
    let all = store.catalogue().checkpoints(id).unwrap();
    let mut guest = Guest::new(9);
    let mut ms = |work: &mut dyn FnMut(u64)| {
        let start = Instant::now();
        work(guest.next());
        start.elapsed().as_secs_f64() * 1e3
    };
    let history: Vec<f64> = (0..50)
        .map(|_| ms(&mut |any| drop(store.catalogue().page_history(id, Gfn(any % PAGES)).unwrap())))
        .collect();
    table.add(&format!("store.page_history_ms/{}", all.len()), "ms", history);
    let pick = |any: u64| all[(any % all.len() as u64) as usize].id;
    let differ: Vec<f64> =
        (0..50).map(|_| ms(&mut |any| drop(store.changed(pick(any), pick(any >> 32)).unwrap()))).collect();
    table.add(&format!("store.diff_ms/{}", all.len()), "ms", differ);
}
