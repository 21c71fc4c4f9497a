//! Every damage is either repaired completely, or marked and refused. Checkpoints without a mark after a repair are
//! correct.

use std::fs;
use std::sync::Arc;

use retrovisor_guest::{Gfn, MemoryView, PAGE_SIZE};
use retrovisor_snapshot::{
    Access, CheckpointRequest, Error, Recorder, RepairAction, RepairPlan, RepairReport, RollbackRequest,
    Store,
};

use crate::damage::{closed, flip, pack, sql};
use crate::toy::{Lab, Toy, open, quick_dir};

fn repair(store: &Store) -> (RepairPlan, RepairReport) {
    let plan = store.plan_repair(&mut |_| ()).unwrap();
    let report = store.repair(&plan, &mut |_| ()).unwrap();
    assert_eq!(report.failed, [""; 0]);
    (plan, report)
}

/// Damages a store with three checkpoints, repairs it, and returns which of them were lost, by position.
fn verdict(change: &str, harm: impl Fn(&std::path::Path)) -> Vec<usize> {
    let (clean, _, _) = closed();
    let clean = Store::open(clean.path(), Access::ReadOnly).unwrap();
    let expected: Vec<_> = (1..=3)
        .map(retrovisor_snapshot::CheckpointId)
        .map(|id| (clean.image_hash(id).unwrap(), clean.state(id).unwrap()))
        .collect();
    let (dir, records, toy) = closed();
    harm(dir.path());
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    let (plan, report) = repair(&store);
    assert!(!plan.is_clean(), "{change}");
    assert_eq!(plan.lost, report.lost, "{change}");
    let lost: Vec<usize> = records
        .iter()
        .enumerate()
        .filter(|(_, record)| report.lost.iter().any(|lost| lost.id == record.id))
        .map(|(at, _)| at)
        .collect();
    if lost.is_empty() {
        assert_eq!(report.remaining, [""; 0], "{change}");
        assert!(store.plan_repair(&mut |_| ()).unwrap().is_clean(), "{change}");
    }
    for (at, record) in records.iter().enumerate() {
        let found = store.image_hash(record.id).and_then(|image| Ok((image, store.state(record.id)?)));
        match found {
            Ok(found) => assert_eq!(found, expected[at], "{change}"),
            Err(error) => assert!(lost.contains(&at), "{change}: {error}"),
        }
        // Marked ones are refused as targets, with the reason; others can be restored.
        let machine = store.catalogue().machine("toy").unwrap().id;
        let Ok(mut recorder) = Recorder::fresh(Arc::clone(&store), machine) else { continue };
        let mut running = Toy::new(&toy.identity.layout);
        let gone = recorder.restore(&mut running, record.id, &RollbackRequest::default());
        if lost.contains(&at) {
            let Err(Error::Lost { name, .. }) = &gone else { panic!("{change}: {gone:?}") };
            assert_eq!(*name, record.name);
        } else {
            gone.unwrap();
            assert_eq!(retrovisor_snapshot::image_hash(&running).unwrap(), expected[at].0, "{change}");
        }
    }
    lost
}

#[test]
fn every_damage_of_the_catalogue_gets_a_verdict() {
    let none: &[usize] = &[];
    let changes: [(&str, &[usize]); 20] = [
        // The list at the second checkpoint cannot be derived, and the third one's map is read through it.
        ("UPDATE page_version SET content = 0 WHERE checkpoint = 2", &[1, 2]),
        ("UPDATE page_version SET gfn = gfn + 1 WHERE checkpoint = 2", &[1, 2]),
        ("DELETE FROM page_version WHERE checkpoint = 2", &[1, 2]),
        // The list at the first follows from its full map.
        ("DELETE FROM page_version WHERE checkpoint = 1", none),
        ("UPDATE page_version SET content = 0 WHERE checkpoint = 1", none),
        ("UPDATE checkpoint SET parent = NULL WHERE id = 2", none),
        ("UPDATE checkpoint SET parent = 1 WHERE id = 3", none),
        ("UPDATE keyframe SET map = zeroblob(40)", none),
        ("UPDATE keyframe SET hash = zeroblob(32)", none),
        ("DELETE FROM keyframe", none),
        ("UPDATE state SET vcpus = replace(vcpus, '\"rip\":0', '\"rip\":1') WHERE checkpoint = 2", &[1]),
        ("UPDATE section SET length_bytes = 99 WHERE checkpoint = 2", &[1]),
        ("UPDATE section SET contents = x'06' WHERE checkpoint = 2", &[1]),
        ("DELETE FROM state WHERE checkpoint = 2", &[1]),
        ("UPDATE content SET slot = 40 WHERE id = 4", none),
        ("UPDATE frame SET offset = offset + 1 WHERE id = 2", none),
        ("UPDATE frame SET pages = 3 WHERE id = 2", none),
        ("UPDATE frame SET stored_bytes = 1 << 30 WHERE id = 2", none),
        ("UPDATE frame SET pack = 7 WHERE id = 2", none),
        ("DELETE FROM frame", none),
    ];
    for (change, lost) in changes {
        let harm = |dir: &std::path::Path| sql(dir, &format!("PRAGMA foreign_keys = OFF; {change}"));
        assert_eq!(verdict(change, harm), lost, "{change}");
    }
    // Frame 6 has content 4 at the second checkpoint, and still at the third. Nothing proves its bytes.
    for change in ["UPDATE content SET hash = zeroblob(32) WHERE id = 4", "DELETE FROM content WHERE id = 4"]
    {
        let harm = |dir: &std::path::Path| sql(dir, change);
        assert_eq!(verdict(change, harm), [1, 2], "{change}");
    }
    // Where the index has a part of the hash, that proves it.
    for change in ["UPDATE content SET hash = zeroblob(32) WHERE id = 4", "DELETE FROM content WHERE id = 4"]
    {
        let harm = |dir: &std::path::Path| {
            index(dir);
            sql(dir, change);
        };
        assert_eq!(verdict(change, harm), none, "{change}");
    }
}

/// Fills the index of hashes, which is only done after many contents.
fn index(dir: &std::path::Path) {
    sql(dir, "INSERT INTO content_index (prefix, content) SELECT 1, 2");
    let store = Store::open(dir, Access::ReadWrite).unwrap();
    let (plan, report) = repair(&store);
    assert!(matches!(plan.items[..], [ref item] if item.action == RepairAction::RebuildIndex), "{plan:?}");
    assert_eq!((report.repaired, report.remaining.len()), (1, 0));
    let count = "SELECT (SELECT count(*) FROM content) = (SELECT count(*) FROM content_index)";
    let same = store.catalogue().query(count, &[], 1).unwrap().rows;
    assert_eq!(same, [[retrovisor_guest::fact::Value::Integer(1)]]);
}

#[test]
fn a_pack_that_the_catalogue_forgot_is_taken_up_again() {
    for change in ["DELETE FROM pack", "UPDATE pack SET committed_bytes = 64"] {
        let harm = |dir: &std::path::Path| sql(dir, &format!("PRAGMA foreign_keys = OFF; {change}"));
        assert_eq!(verdict(change, harm), [0; 0], "{change}");
    }
}

#[test]
fn every_bit_of_a_pack_that_flips_costs_what_it_touches_and_no_more() {
    let (dir, _, _) = closed();
    let length = fs::metadata(pack(dir.path())).unwrap().len();
    let mut verdicts = std::collections::BTreeSet::new();
    for offset in (0..length).step_by(211) {
        verdicts.insert(verdict("flip", |dir| flip(&pack(dir), offset)));
    }
    // The pack's header belongs to all; each frame to some.
    assert!(verdicts.contains(&vec![0, 1, 2]) && verdicts.contains(&vec![2]), "{verdicts:?}");
}

#[test]
fn a_pack_cut_short_or_gone_costs_what_was_in_it_and_may_come_back() {
    let (dir, records, mut toy) = closed();
    let whole = fs::read(pack(dir.path())).unwrap();
    fs::remove_file(pack(dir.path())).unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    let (_, report) = repair(&store);
    assert_eq!(report.lost.len(), 3);
    let machine = store.catalogue().machine("toy").unwrap().id;
    assert_eq!(store.catalogue().damage_marks(machine).unwrap()[0].checkpoint_name, records[0].name);
    // The machine continues, and its new checkpoints are whole.
    let mut recorder = Recorder::fresh(Arc::clone(&store), machine).unwrap();
    toy.scribble(9, 9);
    let next = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap().record;
    let image = retrovisor_snapshot::image_hash(&toy).unwrap();
    drop((recorder, store));
    let store = Store::open(dir.path(), Access::ReadOnly).unwrap();
    assert_eq!(store.image_hash(next.id).unwrap(), image);
    drop(store);
    // The pack is found in a backup.
    fs::write(pack(dir.path()), &whole).unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    let (plan, report) = repair(&store);
    assert_eq!((plan.items.len(), report.lost.len(), report.remaining.len()), (0, 0, 0));
    assert_eq!(report.recovered, records.iter().map(|record| record.name.clone()).collect::<Vec<_>>());
    assert_eq!(store.catalogue().damage_marks(machine).unwrap(), []);

    drop(store);
    let file = fs::OpenOptions::new().write(true).open(pack(dir.path())).unwrap();
    file.set_len(whole.len() as u64 - 10).unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    let (_, report) = repair(&store);
    // The lost data were stored again with the new checkpoint: nothing is lost.
    assert!(report.repaired > 0);
    assert_eq!((report.lost.len(), store.image_hash(next.id).unwrap()), (0, image));
}

#[test]
fn contents_that_are_there_twice_are_linked_to_the_copy_that_is_whole() {
    let dir = quick_dir();
    let store = open(dir.path());
    let mut toy = Toy::new(&retrovisor_guest::MemoryLayout::flat(8 * PAGE_SIZE as u64).unwrap());
    let machine = store.catalogue().add_machine(&toy.identity).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    toy.scribble(0, 1);
    let first = recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap().record;
    drop((recorder, store));
    // The index is marked as complete, and is empty: known contents are stored again.
    sql(dir.path(), "INSERT OR REPLACE INTO setting VALUES ('indexed_content', x'ff00000000000000')");
    let store = open(dir.path());
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    toy.scribble(1, 1);
    recorder.checkpoint(&mut toy, &CheckpointRequest::default()).unwrap();
    drop((recorder, store));
    flip(&pack(dir.path()), 64 + 24 + 200);
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    assert!(store.image_hash(first.id).is_err());
    let (plan, report) = repair(&store);
    assert!(plan.items.iter().any(|item| matches!(item.action, RepairAction::Relink { .. })), "{plan:?}");
    assert_eq!((report.lost.len(), report.remaining.len()), (0, 0), "{report:?}");
    let mut page = [0; PAGE_SIZE];
    store.view(first.id).unwrap().read_page(Gfn(0), &mut page).unwrap();
    assert_eq!(page, crate::toy::page_of(1));
}

#[test]
fn a_lost_list_follows_from_a_later_full_map() {
    let mut lab = Lab::new(64);
    for round in 0..70_u64 {
        lab.toy.scribble(usize::try_from(round * 5 % 64).unwrap(), round);
        lab.checkpoint();
    }
    let Lab { dir, store, recorder, .. } = lab;
    let before: Vec<_> =
        (1..=70).map(|id| store.image_hash(retrovisor_snapshot::CheckpointId(id)).unwrap()).collect();
    drop((store, recorder));
    // The 65th has a full map. Nothing writes the frames of the 60th again before it.
    sql(dir.path(), "DELETE FROM page_version WHERE checkpoint = 60");
    let store = Store::open(dir.path(), Access::ReadWrite).unwrap();
    let (plan, report) = repair(&store);
    assert!(matches!(plan.items[0].action, RepairAction::RebuildChanges { .. }), "{plan:?}");
    assert_eq!((report.lost.len(), report.remaining.len()), (0, 0), "{report:?}");
    for (at, image) in before.iter().enumerate() {
        let id = retrovisor_snapshot::CheckpointId(i64::try_from(at).unwrap() + 1);
        assert_eq!(store.image_hash(id).unwrap(), *image);
    }
}
