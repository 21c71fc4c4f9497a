//! Where the kernel rewrites its own code, according to its own tables: jump labels, static calls, the function tracer,
//! kprobes.

use super::{code::Code, kprobes::Kprobes, tracers::Tracers};
use crate::probe::Probe;

/// The code, tracers and probes that are registered in one memory, by which changed code is explained.
pub(crate) struct Lawful<'l> {
    pub(crate) code: &'l Code<'l>,
    pub(crate) tracers: Tracers,
    pub(crate) kprobes: Kprobes,
}

/// Every address at which the code may change, and what may be there. Read once for each boot, before the guest can
/// have changed the tables.
#[derive(Default)]
pub(crate) struct LawfulSites {
    /// Ascending: address and kind.
    sites: Vec<(u64, Site)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    /// A jump to this address, or a no-op.
    JumpLabel(u64),
    /// A call or jump to a function of the kernel, a return, or a no-op.
    StaticCall,
    /// A call or jump of the tracer, or a no-op.
    Tracer,
}

/// Longest instruction that is patched: a conditional jump with a 32-bit displacement.
const SITE_BYTES: usize = 6;
const SITES_MAX: u64 = 1 << 20;
/// Bytes of an entry: code, target and key.
const JUMP_BYTES: usize = 16;
/// Bytes of an entry: site and key.
const CALL_BYTES: usize = 8;
const BREAKPOINT: u8 = 0xcc;
const NOPS: [&[u8]; 7] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x66, 0x66, 0x66, 0x90],
    &[0x3e, 0x8d, 0x74, 0x26, 0x00],
];
/// `xor eax, eax` filled up to five bytes: a static call that returns 0.
const RETURN_ZERO: [&[u8]; 2] = [&[0x2e, 0x2e, 0x2e, 0x31, 0xc0], &[0x66, 0x66, 0x48, 0x31, 0xc0]];

impl LawfulSites {
    pub(crate) fn read(probe: &Probe) -> Self {
        let labels = array(probe, "__start___jump_table", "__stop___jump_table", JUMP_BYTES as u64);
        let mut sites = labels.map(|(start, table)| jump_labels(start, &table)).unwrap_or_default();
        let calls = array(probe, "__start_static_call_sites", "__stop_static_call_sites", CALL_BYTES as u64);
        sites.extend(calls.map(|(start, table)| static_calls(start, &table)).unwrap_or_default());
        // The trampolines of calls that are not inline.
        let trampolines = probe.kernel.symbols_within(probe.kernel.text());
        sites.extend(
            trampolines.filter(|(_, name)| name.starts_with("__SCT__")).map(|(at, _)| (at, Site::StaticCall)),
        );
        sites.extend(tracer_sites(probe).unwrap_or_default());
        // The calls in the tracer's own entry code.
        let own = ["ftrace_call", "ftrace_regs_call", "ftrace_graph_call"].map(|name| probe.symbol(name));
        sites.extend(own.into_iter().flatten().map(|at| (at, Site::Tracer)));
        sites.sort_unstable();
        sites.dedup();
        Self { sites }
    }

    /// The sites of a module, from its own tables.
    pub(crate) fn of_module(code: &Code, module: usize) -> Self {
        let probe = code.probe;
        let table = |start: &str, count: &str, element: u64| {
            let structure = *code.modules.structures.get(module)?;
            let start = probe.reader.pointer(structure, probe.field("module", start)?)?;
            let count = probe.reader.number(structure, probe.field("module", count)?)?;
            let bytes = count.checked_mul(element).filter(|bytes| *bytes <= SITES_MAX * element)?;
            let mut array = vec![0; usize::try_from(bytes).ok()?];
            probe.reader.read(start, &mut array)?;
            Some((start, array))
        };
        let labels = table("jump_entries", "num_jump_entries", JUMP_BYTES as u64);
        let mut sites = labels.map(|(start, table)| jump_labels(start, &table)).unwrap_or_default();
        let calls = table("static_call_sites", "num_static_call_sites", CALL_BYTES as u64);
        sites.extend(calls.map(|(start, table)| static_calls(start, &table)).unwrap_or_default());
        let own = code.modules.all.get(module).map(|module| module.name.as_str());
        let trampolines = code
            .symbols
            .all()
            .filter(|(module, _, name)| Some(*module) == own && name.starts_with("__SCT__"));
        sites.extend(trampolines.map(|(_, at, _)| (at, Site::StaticCall)));
        let (_, entries) = table("ftrace_callsites", "num_ftrace_callsites", 8).unwrap_or_default();
        let entries = entries.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        sites.extend(entries.map(|at| (at, Site::Tracer)));
        sites.sort_unstable();
        sites.dedup();
        Self { sites }
    }

    /// Whether changed bytes are at known sites and each has a permitted instruction.
    pub(crate) fn explain(&self, lawful: &Lawful, virt: u64, now: &[u8]) -> bool {
        let last = virt + now.len() as u64;
        let (mut at, mut covered) = (virt, true);
        // One run of changed bytes can cover several adjacent sites.
        while at < last && covered {
            let first = self.sites.partition_point(|(site, _)| site + SITE_BYTES as u64 <= at);
            let near = self.sites[first..].iter().take_while(|(site, _)| *site <= at);
            let site_end = near
                .filter_map(|(site, kind)| {
                    let mut code = [0; SITE_BYTES];
                    lawful.code.probe.reader.read(*site, &mut code)?;
                    let length = lawful_length(lawful, *site, *kind, &code)?;
                    Some(site + length).filter(|end| *end > at)
                })
                .max();
            match site_end.or_else(|| lawful.kprobes.end_of_site(at)) {
                Some(end) => at = end,
                None => covered = false,
            }
        }
        covered
    }
}

/// The length of the permitted instruction at a site; `None` when the instruction is not permitted there.
fn lawful_length(lawful: &Lawful, site: u64, kind: Site, code: &[u8]) -> Option<u64> {
    let leads_to = |length: u64, displacement: i64| (site + length).wrapping_add_signed(displacement);
    let near = |at: usize| code.get(at..)?.first_chunk().map(|bytes| i64::from(i32::from_le_bytes(*bytes)));
    if code[0] == BREAKPOINT {
        // The site is in the middle of being patched.
        return Some(SITE_BYTES as u64);
    }
    if NOPS.iter().any(|nop| code.starts_with(nop)) {
        return Some(5);
    }
    match (kind, code[0]) {
        (Site::JumpLabel(target), 0xeb) => (leads_to(2, code[1].cast_signed().into()) == target).then_some(5),
        (Site::JumpLabel(target), 0xe9) => (leads_to(5, near(1)?) == target).then_some(5),
        (Site::StaticCall, 0xe8 | 0xe9) => lawful.code.is_accounted(leads_to(5, near(1)?)).then_some(5),
        (Site::StaticCall, 0x0f) if code[1] & 0xf0 == 0x80 => {
            lawful.code.is_accounted(leads_to(6, near(2)?)).then_some(6)
        }
        (Site::StaticCall, 0xc3) => Some(5),
        (Site::Tracer, 0xe8 | 0xe9) => {
            lawful.tracers.may_lead_to(lawful.code, leads_to(5, near(1)?)).then_some(5)
        }
        (Site::StaticCall, _) => RETURN_ZERO.iter().any(|zero| code.starts_with(zero)).then_some(5),
        _ => None,
    }
}

/// An array between two symbols, as bytes.
fn array(probe: &Probe, start: &str, stop: &str, element: u64) -> Option<(u64, Vec<u8>)> {
    let (start, stop) = (probe.symbol(start)?, probe.symbol(stop)?);
    let bytes = stop.checked_sub(start).filter(|bytes| *bytes <= SITES_MAX * element)?;
    let mut array = vec![0; usize::try_from(bytes).ok()?];
    probe.reader.read(start, &mut array)?;
    Some((start, array))
}

/// The address given by a number relative to its own address.
fn relative(at: u64, bytes: &[u8]) -> Option<u64> {
    let offset = i32::from_le_bytes(*bytes.first_chunk()?);
    Some(at.wrapping_add_signed(offset.into()))
}

fn jump_labels(start: u64, table: &[u8]) -> Vec<(u64, Site)> {
    let entry = |(at, bytes): (u64, &[u8; JUMP_BYTES])| {
        Some((relative(at, bytes)?, Site::JumpLabel(relative(at.wrapping_add(4), &bytes[4..])?)))
    };
    addresses(start, JUMP_BYTES as u64).zip(table.as_chunks::<JUMP_BYTES>().0).filter_map(entry).collect()
}

fn static_calls(start: u64, table: &[u8]) -> Vec<(u64, Site)> {
    let sites = addresses(start, CALL_BYTES as u64).zip(table.as_chunks::<CALL_BYTES>().0);
    sites.filter_map(|(at, bytes)| Some((relative(at, bytes)?, Site::StaticCall))).collect()
}

/// The addresses of an array's elements.
fn addresses(start: u64, element: u64) -> impl Iterator<Item = u64> {
    (0_u64..).map(move |index| start.wrapping_add(index.wrapping_mul(element)))
}

/// The call sites at function entries that the tracer has recorded.
fn tracer_sites(probe: &Probe) -> Option<Vec<(u64, Site)>> {
    const GROUPS_MAX: usize = 4096;
    let field = |path: &str| probe.field("ftrace_page", path);
    let (next, records, index) = (field("next")?, field("records")?, field("index")?);
    let record_bytes = probe.types.size_of("dyn_ftrace").filter(|bytes| (8..=64).contains(bytes))?;
    let address = usize::try_from(probe.field("dyn_ftrace", "ip")?.offset_bytes).ok()?;
    let (mut sites, mut group) = (Vec::new(), probe.word("ftrace_pages_start")?);
    for _ in 0..GROUPS_MAX {
        if group == 0 || sites.len() as u64 > SITES_MAX {
            break;
        }
        let count = probe.reader.number(group, index)?.min(SITES_MAX);
        let mut bytes = vec![0; usize::try_from(count * record_bytes).ok()?];
        probe.reader.read(probe.reader.pointer(group, records)?, &mut bytes)?;
        let record = bytes.chunks_exact(usize::try_from(record_bytes).ok()?);
        let ip = |record: &[u8]| record.get(address..)?.first_chunk().map(|ip| u64::from_le_bytes(*ip));
        sites.extend(record.filter_map(ip).filter(|ip| *ip != 0).map(|ip| (ip, Site::Tracer)));
        group = probe.reader.pointer(group, next)?;
    }
    Some(sites)
}
