//! What fuzzers begin from.

mod guest;

use std::fs;
use std::path::Path;
use std::sync::Arc;

pub use guest::{ask_guest, guest_seeds, kernel_seeds};
use retrovisor_guest::{Gfn, MemoryView as _, PAGE_SIZE};
use retrovisor_snapshot::{Access, Store};

/// A real store of the first format, as one stream: length of the name (4 bytes), name, length (8 bytes), bytes.
const STORE: &[u8] = include_bytes!("../../snapshot/tests/fixtures/format-1.zst");

/// The files of a real store.
pub fn store_files() -> Vec<(String, Vec<u8>)> {
    let bytes = zstd::decode_all(STORE).expect("the fixture is whole");
    let mut rest = bytes.as_slice();
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at(count.min(rest.len()));
        rest = tail;
        head.to_vec()
    };
    let mut files = Vec::new();
    while let Ok(length) = take(4).try_into() {
        let length = u32::from_le_bytes(length);
        let name = String::from_utf8(take(length as usize)).expect("a name");
        let length = u64::from_le_bytes(take(8).try_into().expect("a length"));
        files.push((name, take(length as usize)));
    }
    files
}

/// Puts a real store into a directory.
pub fn put_store(dir: &Path) {
    for (name, bytes) in store_files() {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("a file in the directory")).expect("the directory is made");
        fs::write(path, bytes).expect("the file is written");
    }
}

/// Brings the store to the newest format.
pub fn migrate(dir: &Path) {
    Store::open(dir, Access::ReadWrite).expect("the store opens");
}

/// Every page that the store holds.
pub fn pages(dir: &Path) -> Vec<Vec<u8>> {
    let store = Arc::new(Store::open(dir, Access::ReadOnly).expect("the store opens"));
    let mut pages = Vec::new();
    for machine in store.catalogue().machines().expect("machines") {
        for record in store.catalogue().checkpoints(machine.id).expect("checkpoints") {
            let view = store.view(record.id).expect("a view");
            for index in 0..view.layout().pages() {
                let gfn: Gfn = view.layout().gfn(index).expect("a frame");
                let mut page = [0; PAGE_SIZE];
                view.read_page(gfn, &mut page).expect("a page");
                pages.push(page.to_vec());
            }
        }
    }
    pages.sort();
    pages.dedup();
    pages
}
