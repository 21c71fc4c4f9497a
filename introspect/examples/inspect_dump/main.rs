//! Prints what can be read from a raw memory dump.
//!
//! `cargo run --release -p retrovisor-introspect --example inspect_dump -- memory.raw [registers.txt] [second.raw …]`
//! where `registers.txt` holds QEMU's answer to `info registers -a` (`-` for none). Further dumps must be later ones of
//! the same guest: each shows the cost and the result of a further observation.

mod registers;

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Instant};

use retrovisor_guest::MemoryView;
use retrovisor_introspect::{Introspector, Kernel, Observation, OwnerMap, RawDump};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((first, rest)) = arguments.split_first() else {
        eprintln!("usage: inspect_dump memory.raw [registers.txt|-] [second.raw …]");
        return ExitCode::from(2);
    };
    let (registers, later) =
        rest.split_first().map_or((None, rest), |(registers, later)| (Some(registers), later));
    let vcpus = registers.filter(|path| *path != "-").map(std::fs::read_to_string).transpose();
    let vcpus = match vcpus {
        Ok(text) => text.as_deref().map(registers::parse).unwrap_or_default(),
        Err(error) => {
            eprintln!("cannot read the registers: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut introspector = Introspector::new();
    for path in std::iter::once(first).chain(later) {
        let dump = match RawDump::open(Path::new(path)) {
            Ok(dump) => dump,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        let start = Instant::now();
        let observation = introspector.observe(&dump, &vcpus);
        println!("{path}: read in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        print(&observation);
        if let Some(kernel) = introspector.kernel() {
            owners(&kernel, &dump, &observation);
        }
    }
    ExitCode::SUCCESS
}

fn print(observation: &Observation) {
    if let Some(reason) = &observation.reason {
        println!("  {reason}");
    }
    println!("  {:?}", observation.memory);
    let Some(linux) = &observation.linux else { return };
    println!("  {:?}", linux.kernel);
    for task in linux.tasks.iter().take(200) {
        println!(
            "  task {:5} {:5} {} {:16} {:?}:{:?} start {} ns, user {} ns, system {} ns, rss {} [{}]",
            task.pid,
            task.ppid,
            task.state,
            task.comm,
            task.uid,
            task.gid,
            task.start_time_ns,
            task.utime_ns,
            task.stime_ns,
            task.rss_pages,
            task.views
        );
    }
    for module in &linux.modules {
        println!("  {module:?}");
    }
    println!("  {} system calls", linux.syscalls.len());
    for line in linux.log.iter().rev().take(5).rev() {
        println!("  log {line:?}");
    }
    println!("  {} log lines", linux.log.len());
    for counter in &linux.counters {
        print!("  {}={}", counter.name, counter.value);
    }
    println!();
    for violation in &linux.integrity {
        println!("  VIOLATION {violation:?}");
    }
}

/// Counts the frames by the kind of their owner.
fn owners(kernel: &Kernel, dump: &RawDump, observation: &Observation) {
    let start = Instant::now();
    let map = OwnerMap::build(kernel, dump, observation);
    let elapsed = start.elapsed();
    let mut counts: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for gfn in dump.layout().gfns() {
        let owner = map.explain(gfn).to_string();
        let first = owner.split(' ').take(2).collect::<Vec<_>>().join(" ");
        counts.entry(first).or_insert((0, owner)).0 += 1;
    }
    println!("  owners of all frames in {:.1} ms:", elapsed.as_secs_f64() * 1e3);
    for (first, (count, example)) in counts {
        println!("    {count:7} {first:32} such as: {example}");
    }
}
