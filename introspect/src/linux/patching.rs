//! Where the kernel rewrites its own code lawfully, as its own tables say: jump labels, static calls, the function
//! tracer, kprobes.

use crate::{hash::IntegerSet, probe::Probe};

/// Every address at which the code may change, with what may stand there. Read once a boot, while the tables can
/// still be trusted.
#[derive(Default)]
pub(crate) struct LawfulSites {
    /// Ascending: address and kind.
    sites: Vec<(u64, Site)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    /// A jump to this address, or nothing.
    JumpLabel(u64),
    /// A call or jump to a function of the kernel, a return, or nothing.
    StaticCall,
    /// A call or jump of the tracer, or nothing.
    Tracer,
}

/// An instruction that is patched is at most this long: a conditional jump with a 32-bit displacement.
const SITE_BYTES: usize = 6;
const SITES_MAX: u64 = 1 << 20;
const KPROBES_MAX: usize = 1 << 16;
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
        let mut sites = jump_labels(probe);
        sites.extend(static_calls(probe));
        sites.extend(tracer_sites(probe).unwrap_or_default());
        // The calls in the tracer's own entry code.
        let own = ["ftrace_call", "ftrace_regs_call", "ftrace_graph_call"].map(|name| probe.symbol(name));
        sites.extend(own.into_iter().flatten().map(|at| (at, Site::Tracer)));
        sites.sort_unstable();
        sites.dedup();
        Self { sites }
    }

    /// Whether changed bytes lie at a lawful site and what stands there now is lawful.
    pub(crate) fn explain(&self, probe: &Probe, virt: u64, now: &[u8], probed: &Probed) -> bool {
        let last = virt + now.len() as u64;
        let (mut at, mut covered) = (virt, true);
        // One run can hold several sites side by side.
        while at < last && covered {
            let first = self.sites.partition_point(|(site, _)| site + SITE_BYTES as u64 <= at);
            let near = self.sites[first..].iter().take_while(|(site, _)| *site <= at);
            let site_end = near
                .filter_map(|(site, kind)| {
                    let mut code = [0; SITE_BYTES];
                    probe.reader.read(*site, &mut code)?;
                    let length = lawful_length(probe, *site, *kind, &code)?;
                    Some(site + length).filter(|end| *end > at)
                })
                .max();
            match site_end.or_else(|| probed.end_of_site(at)) {
                Some(end) => at = end,
                None => covered = false,
            }
        }
        covered
    }
}

/// How many bytes of a site are accounted for by what stands there; `None` when that is not lawful there.
fn lawful_length(probe: &Probe, site: u64, kind: Site, code: &[u8]) -> Option<u64> {
    let text = probe.kernel.text();
    let leads_to = |length: u64, displacement: i64| (site + length).wrapping_add_signed(displacement);
    let near = |at: usize| code.get(at..)?.first_chunk().map(|bytes| i64::from(i32::from_le_bytes(*bytes)));
    if code[0] == BREAKPOINT {
        // In the middle of being patched.
        return Some(SITE_BYTES as u64);
    }
    if NOPS.iter().any(|nop| code.starts_with(nop)) {
        return Some(5);
    }
    match (kind, code[0]) {
        (Site::JumpLabel(target), 0xeb) => (leads_to(2, code[1].cast_signed().into()) == target).then_some(5),
        (Site::JumpLabel(target), 0xe9) => (leads_to(5, near(1)?) == target).then_some(5),
        (Site::StaticCall, 0xe8 | 0xe9) => text.contains(&leads_to(5, near(1)?)).then_some(5),
        (Site::StaticCall, 0x0f) if code[1] & 0xf0 == 0x80 => {
            text.contains(&leads_to(6, near(2)?)).then_some(6)
        }
        // Who traces is another question: the tracer's own code is made at run time.
        (Site::StaticCall, 0xc3) | (Site::Tracer, 0xe8 | 0xe9) => Some(5),
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

/// A number that is relative to where it stands.
fn relative(at: u64, bytes: &[u8]) -> Option<u64> {
    let offset = i32::from_le_bytes(*bytes.first_chunk()?);
    Some(at.wrapping_add_signed(offset.into()))
}

fn jump_labels(probe: &Probe) -> Vec<(u64, Site)> {
    const ENTRY: usize = 16;
    let Some((start, table)) = array(probe, "__start___jump_table", "__stop___jump_table", ENTRY as u64)
    else {
        return Vec::new();
    };
    let entry = |(at, bytes): (u64, &[u8; ENTRY])| {
        Some((relative(at, bytes)?, Site::JumpLabel(relative(at + 4, &bytes[4..])?)))
    };
    (start..).step_by(ENTRY).zip(table.as_chunks::<ENTRY>().0).filter_map(entry).collect()
}

fn static_calls(probe: &Probe) -> Vec<(u64, Site)> {
    const ENTRY: usize = 8;
    let table = array(probe, "__start_static_call_sites", "__stop_static_call_sites", ENTRY as u64);
    let (start, table) = table.unwrap_or_default();
    let sites = (start..).step_by(ENTRY).zip(table.as_chunks::<ENTRY>().0);
    let mut sites: Vec<_> =
        sites.filter_map(|(at, bytes)| Some((relative(at, bytes)?, Site::StaticCall))).collect();
    // The trampolines, for calls that are not inline.
    let trampolines = probe.kernel.symbols_within(probe.kernel.text());
    sites.extend(
        trampolines.filter(|(_, name)| name.starts_with("__SCT__")).map(|(at, _)| (at, Site::StaticCall)),
    );
    sites
}

/// The call sites at function entries that the tracer knows.
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

/// Where kprobes stand at this instant: they come and go.
#[derive(Default)]
pub(crate) struct Probed {
    addresses: IntegerSet<u64>,
}

impl Probed {
    pub(crate) fn read(probe: &Probe) -> Self {
        Self { addresses: Self::addresses(probe).unwrap_or_default() }
    }

    fn addresses(probe: &Probe) -> Option<IntegerSet<u64>> {
        const BUCKETS: u64 = 64;
        let table = probe.symbol("kprobe_table")?;
        let (node, address) = (probe.field("kprobe", "hlist")?, probe.field("kprobe", "addr")?);
        let mut addresses = IntegerSet::default();
        for bucket in 0..BUCKETS {
            let mut link = probe.reader.u64(table + bucket * 8)?;
            while link != 0 && addresses.len() < KPROBES_MAX {
                let at = probe.reader.pointer(link.wrapping_sub(node.offset_bytes), address)?;
                if !addresses.insert(at) {
                    break;
                }
                link = probe.reader.u64(link)?;
            }
        }
        Some(addresses)
    }

    /// The end of the probed instruction that covers an address: a breakpoint, or a jump of five bytes.
    fn end_of_site(&self, at: u64) -> Option<u64> {
        (0..5)
            .map(|back| at.wrapping_sub(back))
            .find(|start| self.addresses.contains(start))
            .map(|start| start + 5)
    }
}
