//! Bytes of a store change from outside: damage is reported, never returned, and intact data stay readable.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retrovisor_guest::{Gfn, MachineError, MemoryView, PAGE_SIZE};
use retrovisor_snapshot::{Access, CheckpointRecord, Error, Recorder, RollbackRequest, Store};

use crate::toy::{Lab, Toy};

/// A closed store with three checkpoints: frame 5 is written at the first and third, frame 6 at the second.
pub(crate) fn closed() -> (tempfile::TempDir, Vec<CheckpointRecord>, Toy) {
    let mut lab = Lab::new(64);
    let mut records = Vec::new();
    for (frame, seed) in [(5, 1), (6, 2), (5, 3)] {
        lab.toy.scribble(frame, seed);
        lab.toy.image.device = vec![u8::try_from(seed).unwrap(); 100];
        records.push(lab.checkpoint());
    }
    (lab.dir, records, lab.toy)
}

pub(crate) fn pack(dir: &Path) -> PathBuf {
    dir.join("packs/000001.pack")
}

pub(crate) fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset).unwrap();
}

pub(crate) fn sql(dir: &Path, sql: &str) {
    rusqlite::Connection::open(dir.join("catalogue.sqlite")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_in_a_pack_is_found() {
    let (dir, records, _) = closed();
    let length = fs::metadata(pack(dir.path())).unwrap().len();
    for offset in (0..length).step_by(97) {
        flip(&pack(dir.path()), offset);
        let store = Store::open(dir.path(), Access::ReadOnly).unwrap();
        let report = store.verify(&mut |_| ()).unwrap();
        // The header of a frame has three bytes without a meaning; they are checked as well.
        assert!(!report.damaged.is_empty(), "offset {offset}");
        assert!(report.damaged.iter().all(|damage| damage.pack == Some(1)), "{:?}", report.damaged);
        flip(&pack(dir.path()), offset);
    }
    let store = Store::open(dir.path(), Access::ReadOnly).unwrap();
    let report = store.verify(&mut |_| ()).unwrap();
    assert_eq!((report.damaged, report.checkpoints_checked), (vec![], 3));
    assert_eq!(report.pages_checked, 6);
    drop(records);
}

#[test]
fn a_damaged_page_is_named_and_never_returned() {
    let (dir, records, toy) = closed();
    // The first frame of the pack holds the content of frame 5 at the first checkpoint, and its device state.
    flip(&pack(dir.path()), 64 + 24 + 200);
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    let damaged = store.verify(&mut |_| ()).unwrap().damaged;
    let page = damaged.iter().find(|damage| !damage.gfns.is_empty()).unwrap();
    assert_eq!((page.pack, page.offset, &page.gfns[..]), (Some(1), Some(64), &[Gfn(5)][..]));
    // The second checkpoint inherits the page, the third does not.
    assert_eq!(page.checkpoints, [records[0].name.clone(), records[1].name.clone()]);

    let view = store.view(records[1].id).unwrap();
    let mut bytes = [7; PAGE_SIZE];
    let error = view.read_page(Gfn(5), &mut bytes).unwrap_err().to_string();
    assert!(
        error.contains("page 0x5") && error.contains(&records[1].name) && error.contains("pack 000001"),
        "{error}"
    );
    assert_eq!(bytes, [7; PAGE_SIZE]);
    view.read_page(Gfn(6), &mut bytes).unwrap();
    assert!(store.image_hash(records[0].id).is_err());
    store.image_hash(records[2].id).unwrap();

    // A rollback to an unreadable checkpoint is refused before anything is overwritten, or is reverted.
    let machine = store.catalogue().machine("toy").unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    let mut running = toy;
    let before = running.image.clone();
    let failed = recorder.rollback(&mut running, records[0].id, &RollbackRequest::default());
    assert!(matches!(failed, Err(Error::Damaged(_))), "{failed:?}");
    assert_eq!((running.image, running.paused), (before, false));
}

#[test]
fn a_pack_cut_short_or_gone_is_named_and_the_rest_goes_on() {
    let (dir, records, mut toy) = closed();
    let length = fs::metadata(pack(dir.path())).unwrap().len();
    fs::OpenOptions::new().write(true).open(pack(dir.path())).unwrap().set_len(length - 10).unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    let damaged = store.verify(&mut |_| ()).unwrap().damaged;
    assert!(damaged.iter().any(|damage| damage.what.contains("belong to checkpoints")), "{damaged:?}");
    assert!(damaged.iter().any(|damage| damage.checkpoints == [records[2].name.clone()]), "{damaged:?}");
    store.image_hash(records[1].id).unwrap();
    // New checkpoints go into a new pack.
    let machine = store.catalogue().machine("toy").unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), machine).unwrap();
    toy.scribble(9, 9);
    let next =
        recorder.checkpoint(&mut toy, &retrovisor_snapshot::CheckpointRequest::default()).unwrap().record;
    assert!(dir.path().join("packs/000002.pack").exists());
    store.view(next.id).unwrap().read_page(Gfn(9), &mut [0; PAGE_SIZE]).unwrap();
    drop((recorder, store));

    fs::remove_file(pack(dir.path())).unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::ReadWrite).unwrap());
    let damaged = store.verify(&mut |_| ()).unwrap().damaged;
    assert!(damaged.iter().any(|damage| damage.what.contains("missing")), "{damaged:?}");
    store.view(next.id).unwrap().read_page(Gfn(9), &mut [0; PAGE_SIZE]).unwrap();
}

#[test]
fn a_torn_end_that_no_checkpoint_refers_to_is_cut_off() {
    let (dir, records, _) = closed();
    let length = fs::metadata(pack(dir.path())).unwrap().len();
    let file = fs::OpenOptions::new().append(true).open(pack(dir.path())).unwrap();
    std::io::Write::write_all(&mut &file, &[0x5a; 1000]).unwrap();
    fs::write(dir.path().join("packs/000002.pack"), b"torn").unwrap();
    // A reader does not change it.
    Store::open(dir.path(), Access::ReadOnly).unwrap().image_hash(records[2].id).unwrap();
    assert_eq!(fs::metadata(pack(dir.path())).unwrap().len(), length + 1000);
    let store = Store::open(dir.path(), Access::ReadWrite).unwrap();
    assert_eq!(fs::metadata(pack(dir.path())).unwrap().len(), length);
    assert!(!dir.path().join("packs/000002.pack").exists());
    assert_eq!(store.verify(&mut |_| ()).unwrap().damaged, []);
}

#[test]
fn a_changed_catalogue_is_found() {
    let changes = [
        ("UPDATE page_version SET content = 0 WHERE checkpoint = 2", "changed pages"),
        ("UPDATE page_version SET gfn = gfn + 1 WHERE checkpoint = 2", "changed pages"),
        ("DELETE FROM page_version WHERE checkpoint = 2", "changed pages"),
        ("UPDATE checkpoint SET parent = NULL WHERE id = 2", "changed pages"),
        ("UPDATE keyframe SET map = zeroblob(40)", "full page map"),
        ("UPDATE keyframe SET hash = zeroblob(32)", "full page map"),
        ("DELETE FROM keyframe", "full page map"),
        (
            "UPDATE state SET vcpus = replace(vcpus, '\"rip\":0', '\"rip\":1') WHERE checkpoint = 2",
            "machine state",
        ),
        ("UPDATE section SET length_bytes = 99 WHERE checkpoint = 2", "machine state"),
        ("UPDATE section SET contents = x'06' WHERE checkpoint = 2", "machine state"),
        ("DELETE FROM state WHERE checkpoint = 2", "machine state is missing"),
        ("UPDATE content SET hash = zeroblob(32) WHERE id = 4", "not what was written"),
        ("UPDATE content SET slot = 40 WHERE id = 4", "no such page"),
        ("DELETE FROM content WHERE id = 4", "not in the catalogue"),
        ("UPDATE frame SET offset = offset + 1 WHERE id = 2", "no frame"),
        ("UPDATE frame SET pages = 3 WHERE id = 2", "not the one"),
        ("UPDATE frame SET stored_bytes = 1 << 30 WHERE id = 2", "too long"),
        ("UPDATE frame SET pack = 7 WHERE id = 2", ""),
    ];
    for (change, words) in changes {
        let (dir, records, _) = closed();
        sql(dir.path(), &format!("PRAGMA foreign_keys = OFF; {change}"));
        let store = Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap());
        let damaged = store.verify(&mut |_| ()).unwrap().damaged;
        assert!(damaged.iter().any(|damage| damage.what.contains(words)), "{change}: {damaged:?}");
        // Reading returns the original data or an error.
        for record in &records {
            let image = store.image_hash(record.id).and_then(|hash| Ok((hash, store.state(record.id)?)));
            let (clean, same, _) = closed();
            let clean = Arc::new(Store::open(clean.path(), Access::ReadOnly).unwrap());
            let at = records.iter().position(|r| r.id == record.id).unwrap();
            if let Ok((hash, state)) = image {
                assert_eq!(hash, clean.image_hash(same[at].id).unwrap(), "{change}");
                assert_eq!(state, clean.state(same[at].id).unwrap(), "{change}");
            }
        }
    }
}

#[test]
fn random_bytes_in_the_catalogue_do_no_harm() {
    let (dir, records, _) = closed();
    let path = dir.path().join("catalogue.sqlite");
    let whole = fs::read(&path).unwrap();
    let images: Vec<_> = {
        let store = Store::open(dir.path(), Access::ReadOnly).unwrap();
        records.iter().map(|record| store.image_hash(record.id).unwrap()).collect()
    };
    for at in (100..whole.len()).step_by(whole.len() / 60) {
        let mut torn = whole.clone();
        for byte in &mut torn[at..(at + 16).min(whole.len())] {
            *byte = byte.wrapping_mul(31).wrapping_add(0x5b);
        }
        fs::write(&path, &torn).unwrap();
        let Ok(store) = Store::open(dir.path(), Access::ReadOnly) else { continue };
        let store = Arc::new(store);
        let _ = store.verify(&mut |_| ());
        for (record, image) in records.iter().zip(&images) {
            if let Ok(hash) = store.image_hash(record.id) {
                assert_eq!(hash, *image, "offset {at}");
            }
        }
    }
}

#[test]
fn a_driver_that_reports_other_memory_is_refused() {
    let mut lab = Lab::new(8);
    let mut other = Toy::new(&retrovisor_guest::MemoryLayout::flat(4096).unwrap());
    let refused = lab.recorder.checkpoint(&mut other, &retrovisor_snapshot::CheckpointRequest::default());
    assert!(matches!(refused, Err(Error::Machine(MachineError::Mismatch { .. }))));
    assert!(!other.paused);
}
