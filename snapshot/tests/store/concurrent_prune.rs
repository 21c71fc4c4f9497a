//! A store is pruned while a machine is recorded and others read.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use retrovisor_snapshot::{
    Access, CheckpointRequest, CompactOptions, Error, Recorder, RetentionPolicy, RollbackRequest, Store,
    StoreOptions,
};

use crate::toy::Toy;

#[test]
fn machines_are_recorded_and_readers_read_meanwhile() {
    let dir = crate::toy::quick_dir();
    let options = StoreOptions { pack_bytes_max: 64 << 10 };
    let store = Arc::new(Store::open_with(dir.path(), Access::Create, &options).unwrap());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = {
            let store = Arc::clone(&store);
            scope.spawn(move || {
                let mut toy = Toy::new(&retrovisor_guest::MemoryLayout::flat(400 * 4096).unwrap());
                let machine = store.catalogue().add_machine(&toy.identity).unwrap().id;
                let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
                for round in 0..250_u64 {
                    for page in 0..12 {
                        let at = usize::try_from((round * 31 + page * 17) % 400).unwrap();
                        // Some contents occur repeatedly.
                        let seed = if page < 4 { (round / 3 * 5 + page) % 60 } else { round * 100 + page };
                        toy.scribble(at, seed);
                    }
                    let label = Some(retrovisor_snapshot::image_hash(&toy).unwrap().to_string());
                    let request = CheckpointRequest { label, ..CheckpointRequest::default() };
                    recorder.checkpoint(&mut toy, &request).unwrap();
                    if round % 25 == 24 {
                        let back = store.catalogue().resolve(machine, "-3").unwrap();
                        recorder.rollback(&mut toy, back.id, &RollbackRequest::default()).unwrap();
                    }
                }
            })
        };
        for _ in 0..2 {
            let (done, dir) = (&done, dir.path());
            scope.spawn(move || {
                let store = Arc::new(Store::open(dir, Access::ReadOnly).unwrap());
                while !done.load(Ordering::Relaxed) {
                    for machine in store.catalogue().machines().unwrap() {
                        for record in store.catalogue().checkpoints(machine.id).unwrap() {
                            let Some(label) = record.label else { continue };
                            match store.image_hash(record.id) {
                                Ok(hash) => assert_eq!(hash.to_string(), label),
                                // Pruned since it was listed.
                                Err(Error::NotFound { .. } | Error::Pruned { .. }) => (),
                                Err(other) => panic!("{other}"),
                            }
                        }
                    }
                }
            });
        }
        let policy = RetentionPolicy { keep_last: 12, undo_depth: 1, ..RetentionPolicy::nothing() };
        let (mut removed, mut rewritten) = (0, 0);
        while !writer.is_finished() {
            let plan = store.plan_prune(&policy, None).unwrap();
            let report =
                store.prune(&plan, &CompactOptions::default(), &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(report.compaction.damaged_packs, [0; 0]);
            removed += report.checkpoints;
            rewritten += report.compaction.packs_removed;
            assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
        }
        writer.join().unwrap();
        done.store(true, Ordering::Relaxed);
        assert!(removed > 50 && rewritten > 5, "{removed} {rewritten}");
    });
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    let fresh = Store::open(dir.path(), Access::ReadOnly).unwrap();
    assert_eq!(fresh.verify(&mut |_| ()).unwrap().damaged, []);
}
