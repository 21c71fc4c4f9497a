//! Prints what can be read of a raw memory dump.
//!
//! `cargo run --release -p retrovisor-introspect --example inspect_dump -- memory.raw [registers.txt]`
//! where `registers.txt` holds QEMU's answer to `info registers -a`.

use std::{path::Path, process::ExitCode, time::Instant};

use retrovisor_introspect::{Kernel, RawDump};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dump = RawDump::open(Path::new(&arguments[0])).unwrap();
    let start = Instant::now();
    let kernel = Kernel::find(&dump, &[]);
    println!("{kernel:?} {:?}", start.elapsed());
    ExitCode::SUCCESS
}
