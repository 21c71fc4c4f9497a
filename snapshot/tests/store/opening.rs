//! Opening: who may open a store, what is refused, and with which messages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use retrovisor_snapshot::{Access, Error, Store};

use crate::toy::Lab;

fn refused(dir: &Path, access: Access) -> Error {
    match Store::open(dir, access) {
        Ok(_) => panic!("the store opened"),
        Err(error) => error,
    }
}

fn walk(path: &Path) {
    let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
    if path.is_dir() {
        assert_eq!(mode, 0o700, "{}", path.display());
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path());
        }
    } else {
        assert_eq!(mode, 0o600, "{}", path.display());
    }
}

#[test]
fn files_are_for_their_owner_only() {
    let mut lab = Lab::new(4);
    lab.toy.scribble(0, 1);
    lab.checkpoint();
    let inner = lab.dir.path().join("inner");
    Store::open(&inner, Access::Create).unwrap();
    walk(&inner);
    assert!(fs::read_dir(lab.dir.path().join("packs")).unwrap().count() == 1);
    walk(&lab.dir.path().join("packs"));
}

#[test]
fn one_writes_and_many_read() {
    let mut lab = Lab::new(4);
    let before = lab.checkpoint();
    let error = refused(lab.dir.path(), Access::ReadWrite);
    let Error::InUse { pid, .. } = &error else { panic!("{error}") };
    assert_eq!(*pid, Some(std::process::id()));
    let reader = Arc::new(Store::open(lab.dir.path(), Access::ReadOnly).unwrap());
    lab.toy.scribble(1, 1);
    let after = lab.checkpoint();
    // What was committed since is seen.
    assert_eq!(reader.changed(before.id, after.id).unwrap().len(), 1);
    assert!(reader.view(after.id).is_ok());
    assert!(matches!(reader.catalogue().add_machine(&lab.toy.identity), Err(Error::ReadOnly { .. })));
    let mut recorder = retrovisor_snapshot::Recorder::new(reader, lab.machine).unwrap();
    let refused = recorder.checkpoint(&mut lab.toy, &retrovisor_snapshot::CheckpointRequest::default());
    assert!(matches!(refused, Err(Error::ReadOnly { .. })));
    assert!(!lab.toy.paused && lab.toy.held == 2);
}

#[test]
fn what_is_not_a_store_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        assert!(matches!(refused(dir.path(), access), Error::NoStore { .. }));
    }
    fs::write(dir.path().join("catalogue.sqlite"), vec![b'x'; 8192]).unwrap();
    fs::write(dir.path().join("key"), [1; 32]).unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let error = refused(dir.path(), access);
        assert!(matches!(error, Error::NotAStore { .. }), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let other = rusqlite::Connection::open(dir.path().join("catalogue.sqlite")).unwrap();
    other.execute_batch("CREATE TABLE bookmarks (url)").unwrap();
    let error = refused(dir.path(), Access::Create);
    assert!(error.to_string().contains("application id"), "{error}");
    assert_eq!(
        other.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)).unwrap(),
        1
    );
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let lab = Lab::new(4);
    let Lab { dir, store, recorder, .. } = lab;
    drop((store, recorder));
    let path = dir.path().join("catalogue.sqlite");
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    for access in [Access::Create, Access::ReadWrite, Access::ReadOnly] {
        let error = refused(dir.path(), access);
        assert!(matches!(error, Error::NewerStore { found: 99, .. }), "{error}");
        assert!(error.to_string().contains("or a newer one"));
    }
}

#[test]
fn a_lost_or_foreign_key_is_named() {
    let mut lab = Lab::new(4);
    lab.checkpoint();
    let Lab { dir, store, recorder, .. } = lab;
    drop((store, recorder));
    let key = dir.path().join("key");
    let kept = fs::read(&key).unwrap();
    fs::write(&key, [9; 32]).unwrap();
    assert!(refused(dir.path(), Access::ReadOnly).to_string().contains("key of another store"));
    fs::write(&key, [9; 31]).unwrap();
    assert!(refused(dir.path(), Access::ReadWrite).to_string().contains("31"));
    fs::remove_file(&key).unwrap();
    assert!(matches!(refused(dir.path(), Access::ReadWrite), Error::Io { .. }));
    fs::write(&key, kept).unwrap();
    Store::open(dir.path(), Access::ReadWrite).unwrap();
}
