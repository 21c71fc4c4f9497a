//! A store whose catalogue is any bytes: it opens or says why not; everything that reads it ends, without panic, and a
//! page that it gives is one that was written.
#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use retrovisor_guest::{MemoryView as _, PAGE_SIZE};
use retrovisor_snapshot::{Access, Store};

/// Pages of a machine and checkpoints that are looked at: a catalogue can speak of as many as it likes.
const PAGES: u64 = 64;
const CHECKPOINTS: usize = 8;

/// A real store, whose catalogue is replaced, its files, and the pages it holds.
struct Real {
    dir: tempfile::TempDir,
    files: Vec<(String, Vec<u8>)>,
    pages: Vec<Vec<u8>>,
}

static REAL: LazyLock<Real> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.expect("a directory");
    retrovisor_fuzz::put_store(dir.path());
    retrovisor_fuzz::migrate(dir.path());
    let pages = retrovisor_fuzz::pages(dir.path());
    Real { dir, files: retrovisor_fuzz::store_files(), pages }
});

fn read(real: &Real, access: Access) {
    let Ok(store) = Store::open(real.dir.path(), access) else { return };
    let store = Arc::new(store);
    let Ok(machines) = store.catalogue().machines() else { return };
    // What is compared page by page must not have too many of them.
    if machines.iter().all(|machine| machine.identity.layout.pages() < 1 << 16) {
        let _ = store.verify(&mut |_| ());
    }
    for machine in machines {
        let _ = store.catalogue().operations(machine.id);
        let _ = store.catalogue().timelines(machine.id);
        let _ = store.catalogue().interrupted(machine.id);
        let Ok(checkpoints) = store.catalogue().checkpoints(machine.id) else { continue };
        for record in checkpoints.iter().take(CHECKPOINTS) {
            let _ = store.state(record.id);
            let Ok(view) = store.view(record.id) else { continue };
            for index in 0..view.layout().pages().min(PAGES) {
                let Some(gfn) = view.layout().gfn(index) else { continue };
                let mut page = [0; PAGE_SIZE];
                if view.read_page(gfn, &mut page).is_ok() && page != [0; PAGE_SIZE] {
                    let known = real.pages.binary_search_by(|known| known[..].cmp(&page[..]));
                    assert!(known.is_ok(), "a page that nobody wrote");
                }
            }
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let real = &*REAL;
    let put = |bytes: &[u8]| {
        for (name, bytes) in &real.files {
            std::fs::write(real.dir.path().join(name), bytes).expect("the file is put back");
        }
        for companion in ["catalogue.sqlite-wal", "catalogue.sqlite-shm"] {
            let _ = std::fs::remove_file(real.dir.path().join(companion));
        }
        std::fs::write(real.dir.path().join("catalogue.sqlite"), bytes).expect("the catalogue is replaced");
    };
    put(bytes);
    read(real, Access::ReadOnly);
    put(bytes);
    read(real, Access::ReadWrite);
});
