//! An archive of version 1 is imported: its checkpoints have no column `doubtful`.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::sync::Arc;

use retrovisor_guest::{Gpa, Machine as _, MemoryLayout, PAGE_SIZE};
use retrovisor_scripted::MemoryMachine;

use super::ARCHIVE_MAGIC;
use super::cell::Rows;
use super::record::{Kind, Reader};
use crate::{Access, CheckpointRequest, Recorder, Store};

/// The same records, but for the column, with the header of version 1.
fn as_version_1(archive: &File, path: &std::path::Path) -> Vec<u8> {
    let mut bytes = [&ARCHIVE_MAGIC[..], &1_u32.to_le_bytes(), &[0; 4]].concat();
    let mut chain = blake3::hash(&bytes);
    let mut reader = Reader::begin(archive, path).unwrap();
    loop {
        let (kind, mut body) = reader.next().unwrap();
        if kind == Kind::Rows {
            let mut rows = Rows::decode(&body).unwrap();
            if rows.table == "checkpoint" {
                let width = rows.columns.len();
                assert_eq!(rows.columns.pop().unwrap().0, "doubtful");
                body = Rows::head(&rows.table, &rows.columns);
                for row in rows.cells.chunks(width) {
                    row[..width - 1].iter().for_each(|cell| Rows::push(&mut body, cell));
                }
            }
        }
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        let head = [&[kind as u8][..], &length].concat();
        let mut hasher = blake3::Hasher::new();
        hasher.update(chain.as_bytes()).update(&head).update(&body);
        chain = hasher.finalize();
        bytes.extend([&head[..], &body, chain.as_bytes()].concat());
        if kind == Kind::End {
            return bytes;
        }
    }
}

#[test]
fn an_archive_of_version_1_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("a"), Access::Create).unwrap());
    let mut machine = MemoryMachine::new("m", MemoryLayout::flat(8 * PAGE_SIZE as u64).unwrap()).unwrap();
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    for round in 0..3_u8 {
        machine.poke(Gpa(4096), &[round + 1; 4096]).unwrap();
        recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
    }
    store.catalogue().mark_doubtful(id, 2..=2).unwrap();
    let archive = dir.path().join("archive");
    store.export_archive(id, &archive, &mut |_| ControlFlow::Continue(())).unwrap();

    let there = Store::open(&dir.path().join("b"), Access::Create).unwrap();
    let doubtful = |name| {
        let machine = there.catalogue().machine(name).unwrap().id;
        there.catalogue().checkpoints(machine).unwrap().iter().map(|c| c.doubtful).collect::<Vec<_>>()
    };
    there.import_archive(None, &archive, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(doubtful("m"), [false, true, false]);
    let older = dir.path().join("older");
    fs::write(&older, as_version_1(&File::open(&archive).unwrap(), &archive)).unwrap();
    there.import_archive(Some("older"), &older, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(doubtful("older"), [false; 3]);
    assert_eq!(there.verify(&mut |_| ()).unwrap().damaged, []);
}
