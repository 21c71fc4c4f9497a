//! Writes what the fuzzers begin from: `cargo run --example seeds`, in this folder.

use std::fs;
use std::path::Path;

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let put = |target: &str, name: String, bytes: &[u8]| {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir).expect("the corpus can be written");
        fs::write(dir.join(name), bytes).expect("the corpus can be written");
    };
    for (at, (target, bytes)) in retrovisor_snapshot::fuzzing::seeds().into_iter().enumerate() {
        put(target, format!("seed-{at}"), &bytes);
    }
    let dir = tempfile::tempdir().expect("a directory");
    retrovisor_fuzz::put_store(dir.path());
    let catalogue = dir.path().join("catalogue.sqlite");
    put("catalogue", "seed-format-1".to_owned(), &fs::read(&catalogue).expect("a catalogue"));
    retrovisor_fuzz::migrate(dir.path());
    put("catalogue", "seed-newest".to_owned(), &fs::read(&catalogue).expect("a catalogue"));
    for (at, (target, bytes)) in retrovisor_machine::kvm::fuzzing::seeds().into_iter().enumerate() {
        put(target, format!("seed-{at}"), &bytes);
    }
    for (at, (target, bytes)) in retrovisor_introspect::fuzzing::seeds().into_iter().enumerate() {
        put(target, format!("seed-{at}"), &bytes);
    }
    for (at, (target, bytes)) in retrovisor_fuzz::kernel_seeds().into_iter().enumerate() {
        put(target, format!("kernel-{at}"), &bytes);
    }
    for (at, bytes) in retrovisor_fuzz::guest_seeds().into_iter().enumerate() {
        for target in ["guest", "guest_log", "guest_tasks", "guest_areas"] {
            put(target, format!("seed-{at}"), &bytes);
        }
    }
}
