//! Writes the symbols and types of a kernel, as found in a memory, in the Intermediate Symbol Format of Volatility 3,
//! which needs such a file to read the same memory.
//!
//! `cargo run --release -p retrovisor-introspect --example export_isf -- memory.raw registers.txt > symbols.json`
//!
//! With a third argument `facts` it writes the processes and modules that it reads itself, and how long that took. With
//! `tasks` it prints only the processes. A fourth argument is the folder of a library for the symbols and types.

#[path = "../inspect_dump/registers.rs"]
mod registers;

use std::{collections::BTreeSet, error::Error, io::Write, path::Path, time::Instant};

use retrovisor_guest::MemoryView;
use retrovisor_introspect::{Introspector, Kernel, KernelLibrary, Observation, RawDump, Shape};
use serde_json::{Map, Value, json};

/// How often everything is read without prior state, for the median time.
const ROUNDS: usize = 5;
/// Global variables that the plugins use and whose type BTF does not record.
const TYPED: [(&str, &str); 6] = [
    ("init_task", "task_struct"),
    ("init_mm", "mm_struct"),
    ("modules", "list_head"),
    ("init_pid_ns", "pid_namespace"),
    ("init_net", "net"),
    ("iomem_resource", "resource"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (memory, vcpus, facts) = match arguments.as_slice() {
        [memory, vcpus] => (memory, vcpus, false),
        [memory, vcpus, what] if what == "facts" => (memory, vcpus, true),
        [memory, vcpus, what, library @ ..] if what == "tasks" && library.len() < 2 => {
            return print_tasks(memory, vcpus, library.first());
        }
        _ => return Err("usage: export_isf memory.raw registers.txt [facts|tasks [library]]".into()),
    };
    let dump = RawDump::open(Path::new(memory))?;
    let vcpus = registers::parse(&std::fs::read_to_string(vcpus)?);
    let mut introspector = Introspector::new();
    let mut times = Vec::new();
    let mut observation = Observation::default();
    for _ in 0..if facts { ROUNDS } else { 1 } {
        introspector = Introspector::new();
        let start = Instant::now();
        observation = introspector.observe(&dump, &vcpus);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let first_ms = times[times.len() / 2];
    if let (true, Some(linux)) = (facts, &observation.linux) {
        // Volatility leaves out tasks that have ended and wait for their parent.
        let listed = linux.tasks.iter().filter(|task| !matches!(task.state, 'Z' | 'X'));
        let leaders = listed.filter(|task| task.pid == task.tgid);
        let tasks: Vec<_> = leaders.map(|task| json!([task.pid, task.comm])).collect();
        let modules: Vec<_> = linux.modules.iter().map(|module| &module.name).collect();
        println!("{}", json!({"first_ms": first_ms, "tasks": tasks, "modules": modules}));
        return Ok(());
    }
    let kernel = introspector.kernel().ok_or(observation.reason.unwrap_or_default())?;
    let symbols = symbols(&kernel, &dump)?;
    let (user, enums, mut base) = types(&kernel)?;
    for (name, size, kind) in [("void", 0, "void"), ("pointer", 8, "int")] {
        base.insert(name.into(), json!({"size": size, "kind": kind, "signed": false, "endian": "little"}));
    }
    let file = json!({
        "metadata": {
            "format": "6.2.0",
            "producer": {"name": "retrovisor", "version": env!("CARGO_PKG_VERSION")},
            "linux": {"symbols": [], "types": []},
        },
        "base_types": base,
        "user_types": user,
        "enums": enums,
        "symbols": symbols,
    });
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &file)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// Prints only the processes, without prior state: the equivalent of `linux.pslist`.
fn print_tasks(memory: &str, vcpus: &str, library: Option<&String>) -> Result<(), Box<dyn Error>> {
    let dump = RawDump::open(Path::new(memory))?;
    let vcpus = registers::parse(&std::fs::read_to_string(vcpus)?);
    let tasks = match library {
        Some(folder) => Kernel::find_tasks(&dump, &vcpus, &KernelLibrary::new(Path::new(folder)))?,
        None => Kernel::find(&dump, &vcpus)?.tasks(&dump),
    };
    let mut out = std::io::stdout().lock();
    for task in tasks.iter().filter(|task| task.pid == task.tgid) {
        writeln!(out, "{:#018x} {:6} {:6} {}", task.address, task.pid, task.ppid, task.comm)?;
    }
    Ok(())
}

/// Symbols at their linked addresses: a reader determines the slide itself.
fn symbols(kernel: &Kernel, dump: &dyn MemoryView) -> Result<Map<String, Value>, Box<dyn Error>> {
    let slide = kernel.virtual_slide();
    let mut symbols = Map::new();
    for (address, name) in kernel.symbols_within(0..u64::MAX) {
        // Offsets of per-CPU variables do not slide.
        let linked = if address >> 63 == 1 { address.wrapping_sub(slide) } else { address };
        symbols.entry(name).or_insert_with(|| json!({"address": linked}));
    }
    for (name, structure) in TYPED {
        if let Some(symbol) = symbols.get_mut(name) {
            symbol["type"] = json!({"kind": "struct", "name": structure});
        }
    }
    // An array that ends at the next symbol.
    if let Some((at, bytes)) = kernel.symbol("taint_flags").zip(size_of(kernel, "taint_flag")) {
        let next = kernel.symbols_within(at + 1..at + 4096).next().map_or(at, |(next, _)| next);
        let subtype = json!({"kind": "struct", "name": "taint_flag"});
        let kind = json!({"kind": "array", "count": (next - at) / bytes, "subtype": subtype});
        symbols["taint_flags"]["type"] = kind;
    }
    // Readers recognise the memory to which the file belongs by this text.
    let at = kernel.symbol("linux_banner").ok_or("the kernel has no banner")?;
    let mut banner = vec![0; 512];
    kernel.read_virtual(dump, at, &mut banner)?;
    banner.truncate(banner.iter().position(|byte| *byte == 0).unwrap_or(banner.len()));
    banner.push(0);
    let text = json!({"kind": "array", "count": banner.len(), "subtype": {"kind": "base", "name": "char"}});
    symbols["linux_banner"]["constant_data"] = Value::from(base64(&banner));
    symbols["linux_banner"]["type"] = text;
    Ok(symbols)
}

/// Bytes of a structure.
fn size_of(kernel: &Kernel, wanted: &str) -> Option<u64> {
    (1..=u32::try_from(kernel.type_count()).ok()?).find_map(|id| match kernel.shape(id)? {
        Shape::Structure { name, bytes, .. } if name == wanted && bytes > 0 => Some(bytes),
        _ => None,
    })
}

type Kinds = (Map<String, Value>, Map<String, Value>, Map<String, Value>);

fn types(kernel: &Kernel) -> Result<Kinds, Box<dyn Error>> {
    let (mut user, mut enums, mut base) = (Map::new(), Map::new(), Map::new());
    for id in 1..=u32::try_from(kernel.type_count())? {
        if kernel.resolved_type(id) != Some(id) {
            continue;
        }
        match kernel.shape(id) {
            Some(Shape::Integer { name, bytes, signed }) => {
                let kind = match name.as_str() {
                    "char" => "char",
                    "_Bool" => "bool",
                    _ => "int",
                };
                let reported = json!({"size": bytes, "kind": kind, "signed": signed, "endian": "little"});
                base.insert(name, reported);
            }
            Some(Shape::Structure { union, bytes, members, .. }) => {
                let mut fields = Map::new();
                let mut unnamed = BTreeSet::new();
                for member in members {
                    let mut kind = describe(kernel, member.type_id, 0);
                    if let Some((first, count)) = member.bits {
                        kind = json!({"kind": "bitfield", "bit_position": first, "bit_length": count, "type": kind});
                    }
                    let anonymous = member.name.is_empty();
                    let name =
                        if anonymous { format!("unnamed_field_{}", unnamed.len()) } else { member.name };
                    if anonymous {
                        unnamed.insert(name.clone());
                    }
                    let mut field = json!({"type": kind, "offset": member.offset_bytes});
                    if anonymous {
                        field["anonymous"] = Value::Bool(true);
                    }
                    fields.insert(name, field);
                }
                let kind = if union { "union" } else { "struct" };
                user.entry(name_of(kernel, id))
                    .or_insert(json!({"kind": kind, "size": bytes, "fields": fields}));
            }
            Some(Shape::Enumeration(_, bytes, items)) => {
                let constants: Map<String, Value> =
                    items.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
                let reported = json!({"size": bytes, "base": "unsigned int", "constants": constants});
                enums.entry(name_of(kernel, id)).or_insert(reported);
            }
            _ => {}
        }
    }
    Ok((user, enums, base))
}

fn name_of(kernel: &Kernel, id: u32) -> String {
    match kernel.shape(id) {
        Some(Shape::Structure { name, .. } | Shape::Enumeration(name, ..)) if !name.is_empty() => name,
        _ => format!("unnamed_{id}"),
    }
}

fn describe(kernel: &Kernel, id: u32, depth: u32) -> Value {
    let void = json!({"kind": "base", "name": "void"});
    let Some(id) = kernel.resolved_type(id).filter(|_| depth < 16) else { return void };
    match kernel.shape(id) {
        Some(Shape::Integer { name, .. }) => json!({"kind": "base", "name": name}),
        Some(Shape::Pointer(to)) => json!({"kind": "pointer", "subtype": describe(kernel, to, depth + 1)}),
        Some(Shape::Array(of, count)) => {
            json!({"kind": "array", "count": count, "subtype": describe(kernel, of, depth + 1)})
        }
        Some(Shape::Structure { union, .. }) => {
            json!({"kind": if union { "union" } else { "struct" }, "name": name_of(kernel, id)})
        }
        Some(Shape::Enumeration(..)) => json!({"kind": "enum", "name": name_of(kernel, id)}),
        _ => json!({"kind": "function"}),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) & 63;
            let shown = digit <= chunk.len();
            text.push(if shown { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}
