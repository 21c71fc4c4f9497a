//! Damage in every kind of file: each is reported, nothing that was not written is returned, and intact data stay
//! readable.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use retrovisor_guest::{Gfn, MemoryView as _, PAGE_SIZE};
use retrovisor_snapshot::{Access, CheckpointId, Store, StoreOptions};

use crate::toy::{Frame, Image, Lab, quick_dir};

const PAGES: u64 = 24;

/// The files of a store, by name.
type Files = BTreeMap<String, Vec<u8>>;

/// A store with several packs and two full maps, and its contents; its write-ahead log is still there if `open`.
fn real(open: bool) -> (Files, Vec<(CheckpointId, Image)>) {
    let dir = quick_dir();
    let options = StoreOptions { pack_bytes_max: 30_000 };
    let store = Arc::new(Store::open_with(dir.path(), Access::Create, &options).unwrap());
    let mut lab = Lab::new(PAGES);
    lab.machine = store.catalogue().add_machine(&lab.toy.identity).unwrap().id;
    lab.recorder = retrovisor_snapshot::Recorder::new(Arc::clone(&store), lab.machine).unwrap();
    let mut held = Vec::new();
    for round in 0..66_u64 {
        let index = usize::try_from(round * 7 % PAGES).unwrap();
        match round % 11 {
            3 => lab.toy.set(index, Frame::Zero),
            7 => lab.toy.set(index, Frame::Removed),
            _ => lab.toy.scribble(index, round),
        }
        lab.toy.image.registers.rip = round;
        lab.toy.image.device = vec![u8::try_from(round).unwrap(); 100 + index];
        held.push((lab.checkpoint().id, lab.toy.image.clone()));
    }
    let mut files = Files::new();
    let mut take = || {
        for sub in ["", "packs"] {
            for entry in fs::read_dir(dir.path().join(sub)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
                    files.insert(name, fs::read(path).unwrap());
                }
            }
        }
    };
    if open {
        take();
        // The index of the log belongs to the process that had it open.
        files.remove("catalogue.sqlite-shm");
    } else {
        drop((lab, store));
        take();
    }
    (files, held)
}

fn put(files: &Files) -> tempfile::TempDir {
    let dir = quick_dir();
    fs::create_dir(dir.path().join("packs")).unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The outcome of reading everything.
#[derive(Debug, Default)]
struct Found {
    /// Why it did not open.
    refused: Option<String>,
    /// The result of verification.
    damage: Vec<String>,
    /// Pages and states that were read and are correct.
    intact: usize,
    /// Those that gave an error.
    unreadable: usize,
}

/// Reads everything. Panics when anything is returned that was not written.
fn read(dir: &Path, access: Access, held: &[(CheckpointId, Image)]) -> Found {
    let mut found = Found::default();
    let store = match Store::open(dir, access) {
        Ok(store) => Arc::new(store),
        Err(error) => {
            found.refused = Some(error.to_string());
            return found;
        }
    };
    match store.verify(&mut |_| ()) {
        Ok(report) => found.damage.extend(report.damaged.iter().map(ToString::to_string)),
        Err(error) => found.damage.push(error.to_string()),
    }
    for (id, image) in held {
        match store.state(*id) {
            Ok(state) => {
                assert_eq!(state.vcpus, std::slice::from_ref(&image.registers));
                assert_eq!(state.sections[0].bytes, image.device);
                found.intact += 1;
            }
            Err(_) => found.unreadable += 1,
        }
        let Ok(view) = store.view(*id) else {
            found.unreadable += image.frames.len();
            continue;
        };
        let mut page = [0; PAGE_SIZE];
        for (index, frame) in (0..).zip(&image.frames) {
            match view.read_page(Gfn(index), &mut page) {
                Ok(()) => {
                    let expected = if let Frame::Data(page) = frame { **page } else { [0; PAGE_SIZE] };
                    assert!(
                        page == expected,
                        "checkpoint {}, page {index}: bytes that were never written",
                        id.0
                    );
                    found.intact += 1;
                }
                Err(_) => found.unreadable += 1,
            }
        }
    }
    found
}

impl Found {
    /// Damage is reported, or there is none of consequence.
    fn assert_named(&self, what: &str) {
        let named = self.refused.is_some() || !self.damage.is_empty();
        assert!(named || self.unreadable == 0, "{what}: nothing says what is wrong: {self:?}");
    }
}

#[test]
fn a_bit_in_any_part_of_a_pack() {
    let (files, held) = real(false);
    let whole = read(put(&files).path(), Access::ReadOnly, &held);
    assert_eq!((whole.unreadable, whole.damage.len()), (0, 0), "{whole:?}");
    let packs: Vec<_> = files.keys().filter(|name| name.starts_with("packs/")).cloned().collect();
    assert!(packs.len() > 2, "{packs:?}");
    for (at, pack) in packs.iter().enumerate() {
        // Magic, version, number, store, reserved, checksum; then of the first frame: magic, codec, pages, reserved,
        // length, reserved, checksum, payload.
        for offset in [0, 8, 12, 16, 40, 60, 64, 68, 69, 70, 72, 76, 80, 90, 300] {
            let mut damaged = files.clone();
            damaged.get_mut(pack).unwrap()[offset] ^= 1 << (at % 8);
            let found = read(put(&damaged).path(), Access::ReadOnly, &held);
            let words = format!("pack {:06}", at + 1);
            assert!(found.damage.iter().any(|text| text.contains(&words)), "{pack} {offset}: {found:?}");
            // Only what is in this pack is lost.
            assert!(found.unreadable > 0 && found.intact > whole.intact / 8, "{pack} {offset}: {found:?}");
        }
    }
}

#[test]
fn a_pack_that_is_cut_short_anywhere_or_gone_or_another_one() {
    let (files, held) = real(false);
    let packs: Vec<_> = files.keys().filter(|name| name.starts_with("packs/")).cloned().collect();
    for pack in &packs {
        let length = files[pack].len();
        for keep in [0, 1, 63, 64, 65, 88, length / 2, length - 1] {
            let mut damaged = files.clone();
            damaged.get_mut(pack).unwrap().truncate(keep);
            for access in [Access::ReadOnly, Access::ReadWrite] {
                let found = read(put(&damaged).path(), access, &held);
                assert!(!found.damage.is_empty() && found.intact > 0, "{pack} {keep}: {found:?}");
            }
        }
        let mut damaged = files.clone();
        damaged.remove(pack);
        let found = read(put(&damaged).path(), Access::ReadWrite, &held);
        assert!(found.damage.iter().any(|text| text.contains("missing")), "{pack}: {found:?}");
        assert!(found.intact > 0);
    }
    let mut damaged = files.clone();
    damaged.insert(packs[0].clone(), files[&packs[1]].clone());
    let found = read(put(&damaged).path(), Access::ReadOnly, &held);
    assert!(found.damage.iter().any(|text| text.contains("another pack's name")), "{found:?}");
}

#[test]
fn a_key_or_lock_that_is_damaged_or_gone() {
    let (files, held) = real(false);
    for bytes in [None, Some(vec![]), Some(vec![1; 31]), Some(vec![1; 32]), Some(vec![1; 33])] {
        for access in [Access::ReadOnly, Access::ReadWrite, Access::Create] {
            let mut damaged = files.clone();
            damaged.remove("key");
            damaged.extend(bytes.clone().map(|bytes| ("key".to_owned(), bytes)));
            let dir = put(&damaged);
            let found = read(dir.path(), access, &held);
            assert!(found.refused.is_some_and(|text| text.contains("key")), "{access:?}");
            // Nothing is created or removed: with the right key everything is there again.
            fs::write(dir.path().join("key"), &files["key"]).unwrap();
            assert_eq!(read(dir.path(), access, &held).unreadable, 0);
        }
    }
    for bytes in [vec![], vec![0xff; 5000], b"no number".to_vec()] {
        let mut damaged = files.clone();
        damaged.insert("lock".to_owned(), bytes);
        let found = read(put(&damaged).path(), Access::ReadWrite, &held);
        assert_eq!((found.refused, found.unreadable), (None, 0));
    }
}

#[test]
fn a_catalogue_that_is_cut_short_or_gone() {
    let (files, held) = real(false);
    let length = files["catalogue.sqlite"].len();
    for keep in (0..12).map(|part| length * part / 12).chain([1, 99, 100, 511, 4095, 4096, length - 1]) {
        for access in [Access::ReadOnly, Access::ReadWrite, Access::Create] {
            let mut damaged = files.clone();
            damaged.get_mut("catalogue.sqlite").unwrap().truncate(keep);
            let dir = put(&damaged);
            let found = read(dir.path(), access, &held);
            found.assert_named(&format!("cut to {keep}"));
            assert!(found.refused.is_some() || !found.damage.is_empty(), "cut to {keep}: {found:?}");
            // Whatever happens, the packs stay: with a copy of the catalogue everything is there again.
            for companion in ["catalogue.sqlite-wal", "catalogue.sqlite-shm"] {
                let _ = fs::remove_file(dir.path().join(companion));
            }
            fs::write(dir.path().join("catalogue.sqlite"), &files["catalogue.sqlite"]).unwrap();
            assert_eq!(read(dir.path(), access, &held).unreadable, 0, "cut to {keep}, {access:?}");
        }
    }
    for access in [Access::ReadOnly, Access::ReadWrite, Access::Create] {
        let mut damaged = files.clone();
        damaged.remove("catalogue.sqlite");
        let dir = put(&damaged);
        let found = read(dir.path(), access, &held);
        assert!(found.refused.is_some(), "{found:?}");
        fs::write(dir.path().join("catalogue.sqlite"), &files["catalogue.sqlite"]).unwrap();
        assert_eq!(read(dir.path(), access, &held).unreadable, 0, "{access:?}");
    }
}

#[test]
fn every_page_of_the_catalogue() {
    let (files, held) = real(false);
    let pages = files["catalogue.sqlite"].len() / 4096;
    for page in 0..pages {
        let mut damaged = files.clone();
        let bytes = &mut damaged.get_mut("catalogue.sqlite").unwrap()[page * 4096..(page + 1) * 4096];
        match page % 4 {
            0 => bytes.fill(0),
            1 => bytes[page % 4096] ^= 0x10,
            2 => bytes[2048..].fill(0xff),
            _ => bytes.reverse(),
        }
        let found = read(put(&damaged).path(), Access::ReadOnly, &held);
        found.assert_named(&format!("page {page}"));
    }
}

#[test]
fn every_column_of_every_table_of_the_catalogue() {
    let (files, held) = real(false);
    let dir = put(&files);
    let connection = rusqlite::Connection::open(dir.path().join("catalogue.sqlite")).unwrap();
    let mut statement = connection
        .prepare(
            "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c
             WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' AND t.name NOT LIKE 'fact_%'",
        )
        .unwrap();
    let columns: Vec<(String, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    drop(statement);
    drop(connection);
    assert!(columns.len() > 60, "{columns:?}");
    let values = ["NULL", "-1", "9223372036854775807", "'text'", "x'ff00ff'", "zeroblob(100000)", "1e300"];
    let mut changed = 0;
    for (at, (table, column)) in columns.iter().enumerate() {
        for value in [values[at % values.len()], values[(at + 3) % values.len()]] {
            let dir = put(&files);
            let connection = rusqlite::Connection::open(dir.path().join("catalogue.sqlite")).unwrap();
            connection
                .execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON")
                .unwrap();
            let change = format!("UPDATE OR IGNORE {table} SET {column} = {value}");
            // Values that a column's constraint refuses cannot occur.
            changed += usize::from(connection.execute(&change, []).is_ok_and(|rows| rows > 0));
            drop(connection);
            let found = read(dir.path(), Access::ReadOnly, &held);
            found.assert_named(&change);
            // Opening for writing must not increase the damage.
            let found = read(dir.path(), Access::ReadWrite, &held);
            found.assert_named(&change);
        }
    }
    assert!(changed > 60, "only {changed} changes");
}

#[test]
fn a_write_ahead_log_that_is_torn_or_flipped_or_gone() {
    let (files, held) = real(true);
    let wal = &files["catalogue.sqlite-wal"];
    assert!(wal.len() > 10_000, "the log has {} bytes", wal.len());
    let open = |wal: Option<Vec<u8>>, what: &str| {
        let mut damaged = files.clone();
        damaged.remove("catalogue.sqlite-wal");
        damaged.extend(wal.map(|wal| ("catalogue.sqlite-wal".to_owned(), wal)));
        let found = read(put(&damaged).path(), Access::ReadWrite, &held);
        // SQLite uses the log as far as it is valid: an older state, which is complete. Lost data are reported where
        // packs have more.
        assert!(found.refused.is_some() || found.intact + found.unreadable > 0, "{what}: {found:?}");
        found
    };
    let whole = open(Some(wal.clone()), "whole");
    assert_eq!((whole.unreadable, whole.damage.len()), (0, 0), "{whole:?}");
    open(None, "gone");
    for part in 0..16 {
        let at = wal.len() * part / 16;
        open(Some(wal[..at].to_vec()), "cut");
        let mut flipped = wal.clone();
        flipped[at] ^= 4;
        open(Some(flipped), "flipped");
        let mut zeroed = wal.clone();
        zeroed[at..(at + 512).min(wal.len())].fill(0);
        open(Some(zeroed), "zeroed");
    }
}
