//! Several machines record and several readers read at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use retrovisor_guest::MemoryLayout;
use retrovisor_guest::fact::{Column, Kind, Schema, Table, Value};
use retrovisor_snapshot::{
    Access, CheckpointKind, CheckpointRequest, Recorder, RollbackRequest, Store, image_hash,
};

use crate::toy::{Toy, open, quick_dir};

static SEEN: Schema = Schema { table: "fact_seen", columns: &[Column::new("count", Kind::Integer)] };

#[test]
fn two_machines_record_while_others_read() {
    const ROUNDS: u64 = 120;
    let dir = quick_dir();
    let store = open(dir.path());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = ["a", "b"]
            .map(|name| {
                let store = Arc::clone(&store);
                scope.spawn(move || record(&store, name, ROUNDS))
            })
            .into();
        for access in [None, Some(Access::ReadOnly)] {
            let (done, dir) = (&done, dir.path());
            let store =
                access.map_or_else(|| Arc::clone(&store), |how| Arc::new(Store::open(dir, how).unwrap()));
            scope.spawn(move || {
                let mut looked = 0;
                while !done.load(Ordering::Relaxed) || looked == 0 {
                    for machine in store.catalogue().machines().unwrap() {
                        for record in store.catalogue().recent_checkpoints(machine.id, 2).unwrap() {
                            let hash = store.image_hash(record.id).unwrap().to_string();
                            assert_eq!(record.label.unwrap_or_else(|| hash.clone()), hash);
                            looked += 1;
                        }
                    }
                }
            });
        }
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
    // What both machines wrote is stored once.
    let twice = "SELECT count(*) FROM (SELECT hash FROM content GROUP BY hash HAVING count(*) > 1)";
    assert_eq!(store.catalogue().query(twice, &[], 1).unwrap().rows, [[Value::Integer(0)]]);
}

fn record(store: &Arc<Store>, name: &str, rounds: u64) {
    let mut toy = Toy::new(&MemoryLayout::flat(100 * 4096).unwrap());
    toy.identity.name = name.into();
    let machine = store.catalogue().add_machine(&toy.identity).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(store), machine).unwrap();
    for round in 0..rounds {
        for page in 0..10 {
            toy.scribble(usize::try_from((round * 13 + page * 7) % 100).unwrap(), round * 3 + page);
        }
        let label = Some(image_hash(&toy).unwrap().to_string());
        let request = CheckpointRequest { label, kind: CheckpointKind::Automatic };
        let taken = recorder.checkpoint(&mut toy, &request).unwrap().record;
        let rows = vec![vec![Value::from(round)]];
        store.catalogue().record_facts(taken.id, &[Table { schema: &SEEN, rows }]).unwrap();
        if round % 20 == 19 {
            let back = store.catalogue().resolve(machine, "-5").unwrap();
            recorder.rollback(&mut toy, back.id, &RollbackRequest::default()).unwrap();
        }
    }
}
