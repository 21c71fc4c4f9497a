//! A real guest's memory, of those that the tests of the kernels leave in the cache.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

use retrovisor_guest::VcpuRegisters;
use retrovisor_introspect::fuzzing::{CHANGE_BYTES, Guest, Question};
use retrovisor_introspect::{Kernel, RawDump};

#[path = "../../introspect/examples/inspect_dump/registers.rs"]
mod registers;

/// Where the tests keep stopped guests; `RETROVISOR_FUZZ_DUMP` chooses another than the first there is.
fn folder() -> Option<PathBuf> {
    if let Some(chosen) = std::env::var_os("RETROVISOR_FUZZ_DUMP") {
        return Some(PathBuf::from(chosen));
    }
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let base = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let cache = std::env::var_os("RETROVISOR_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(base()?.join("retrovisor")))?;
    ["sid-cloud-small", "bookworm-cloud-small", "bullseye-cloud-small"]
        .iter()
        .map(|name| cache.join("dumps").join(name))
        .find(|folder| folder.join("memory").is_file() && folder.join("registers").is_file())
}

fn dump() -> Option<(RawDump, Vec<VcpuRegisters>)> {
    let folder = folder()?;
    let registers = registers::parse(&fs::read_to_string(folder.join("registers")).ok()?);
    Some((RawDump::open(&folder.join("memory")).ok()?, registers))
}

thread_local! {
    static GUEST: OnceCell<Guest> = const { OnceCell::new() };
}

/// Changes the guest as the bytes say, and asks.
pub fn ask_guest(question: Question, bytes: &[u8]) {
    GUEST.with(|guest| {
        let guest = guest.get_or_init(|| {
            let found = dump().and_then(|(memory, registers)| Guest::new(&memory, &registers));
            found.expect("no stopped guest in the cache: `cargo test -p retrovisor-introspect --test word` leaves some")
        });
        guest.ask(question, bytes);
    });
}

/// One change of every way, in frames spread over those that are read.
pub fn guest_seeds() -> Vec<Vec<u8>> {
    let change = |frame: u16, way: u8, word: u64| {
        let mut bytes = frame.to_le_bytes().to_vec();
        bytes.extend((frame.wrapping_mul(88)).to_le_bytes());
        bytes.push(way);
        bytes.extend(word.to_le_bytes());
        assert_eq!(bytes.len(), CHANGE_BYTES);
        bytes
    };
    let words = [0, 1, 8, 64, u64::MAX, 1 << 63];
    let mut seeds: Vec<Vec<u8>> = (0..8)
        .map(|way| words.iter().flat_map(|word| change(u16::from(way) * 37, way, *word)).collect())
        .collect();
    seeds.push((0..32).flat_map(|frame| change(frame * 31, 6, frame.into())).collect());
    seeds
}

/// Parts of a real kernel's image, by target: the smallest modules' types and the symbol table are too long for a fuzzer,
/// their beginnings are not.
pub fn kernel_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let Some((memory, registers)) = dump() else {
        eprintln!("SKIPPED: no stopped guest in the cache, so no seeds of its kernel");
        return Vec::new();
    };
    let Ok(kernel) = Kernel::find(&memory, &registers) else { return Vec::new() };
    let read = |symbol: &str, length: usize| {
        let mut bytes = vec![0; length];
        kernel.read_virtual(&memory, kernel.symbol(symbol)?, &mut bytes).ok()?;
        Some(bytes)
    };
    let mut seeds = Vec::new();
    for number in [0_u32, 57, 110, 231] {
        if let Some(code) = read("x64_sys_call", 4096) {
            seeds.push(("syscall_dispatch", [number.to_le_bytes().to_vec(), code].concat()));
        }
    }
    seeds.extend(read("vmcoreinfo_data", 8).and_then(|at| {
        let at = u64::from_le_bytes(*at.first_chunk()?);
        let mut note = vec![0; 4096];
        kernel.read_virtual(&memory, at, &mut note).ok()?;
        Some(("kernel_note", note))
    }));
    seeds
}
