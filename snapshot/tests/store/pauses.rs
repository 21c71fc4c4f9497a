//! A long import does not lengthen the pauses of machines that are recorded meanwhile (docs/locks.md).

use std::ops::ControlFlow;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;
use std::time::Duration;

use retrovisor_guest::MemoryLayout;
use retrovisor_snapshot::{CheckpointRequest, CurrentPolicy, DumpFormat, Error, RollbackRequest};

use crate::toy::{Lab, page_of};

/// Pages of the dump that is imported: several batches.
const PAGES: u64 = 6_000;

/// A raw dump whose pages all differ.
fn dump(lab: &Lab) -> std::path::PathBuf {
    let path = lab.dir.path().join("memory.raw");
    let bytes: Vec<u8> = (0..PAGES).flat_map(|page| page_of(1_000_000 + page)).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn checkpoints_and_rollbacks_go_on_while_an_import_is_stopped_in_the_middle() {
    let mut lab = Lab::with(&MemoryLayout::flat(64 * 4096).unwrap());
    lab.toy.scribble(1, 1);
    let first = lab.checkpoint();
    let path = dump(&lab);
    let store = lab.store.clone();
    thread::scope(|scope| {
        let (reached, is_reached) = channel();
        let (go_on, wait) = sync_channel::<()>(0);
        let import = scope.spawn(move || {
            let mut batches = 0;
            store.import_dump("imported", &path, DumpFormat::Raw, &mut |_| {
                batches += 1;
                if batches == 2 {
                    reached.send(()).unwrap();
                    // The import does not end before the machine is done.
                    let _ = wait.recv_timeout(Duration::from_mins(1));
                }
                ControlFlow::Continue(())
            })
        });
        is_reached.recv().unwrap();
        for round in 0..3 {
            lab.toy.scribble(2, 10 + round);
            lab.recorder.checkpoint(&mut lab.toy, &CheckpointRequest::default()).unwrap();
            lab.toy.scribble(3, 20 + round);
            for current in [CurrentPolicy::Durable, CurrentPolicy::Staged] {
                let request = RollbackRequest { current, ..RollbackRequest::default() };
                lab.recorder.rollback(&mut lab.toy, first.id, &request).unwrap();
            }
        }
        assert!(!import.is_finished());
        drop(go_on);
        let report = import.join().unwrap().unwrap();
        assert_eq!(report.new_contents, PAGES);
    });
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn contents_of_an_import_that_is_stopped_are_removed_unless_a_checkpoint_refers_to_them() {
    let mut lab = Lab::with(&MemoryLayout::flat(64 * 4096).unwrap());
    lab.checkpoint();
    let path = dump(&lab);
    let count = |lab: &Lab| {
        let rows = lab.store.catalogue().query("SELECT count(*) FROM content", &[], 1).unwrap();
        rows.rows[0][0].clone()
    };
    let before = count(&lab);
    let store = lab.store.clone();
    let mut batches = 0;
    let stopped = store.import_dump("imported", &path, DumpFormat::Raw, &mut |_| {
        batches += 1;
        if batches < 2 {
            return ControlFlow::Continue(());
        }
        // The guest writes a page that the import has added already.
        lab.toy.scribble(5, 1_000_000);
        lab.checkpoint();
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    let retrovisor_guest::fact::Value::Integer(before) = before else { panic!("no number") };
    assert_eq!(count(&lab), retrovisor_guest::fact::Value::Integer(before + 1));
    assert!(lab.store.catalogue().machine("imported").is_err());
    assert_eq!(lab.store.verify(&mut |_| ()).unwrap().damaged, []);
}
