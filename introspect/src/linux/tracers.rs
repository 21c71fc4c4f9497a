use std::ops::Range;

use super::code::Code;
use crate::{
    btf::Field,
    fact::{Hook, HookKind, Violation, ViolationKind},
    hash::IntegerSet,
    probe::Probe,
};

/// The users of the function tracer, and the permitted targets of its call sites.
#[derive(Default)]
pub(crate) struct Tracers {
    pub(crate) hooks: Vec<Hook>,
    pub(crate) violations: Vec<Violation>,
    /// Code that the tracer generated for one of its users.
    trampolines: Vec<Range<u64>>,
    /// The functions that the tracer calls.
    handlers: IntegerSet<u64>,
    /// The functions that traced functions call directly, without the tracer.
    direct: IntegerSet<u64>,
    /// A CPU is registering or unregistering: call sites and list may disagree.
    changing: bool,
}

const TRACERS_MAX: usize = 4096;
const BUCKETS_BITS_MAX: u64 = 16;
const FUNCTIONS_MAX: usize = 1 << 17;
const TRAMPOLINE_BYTES_MAX: u64 = 1 << 16;
/// Functions that are listed by name.
const NAMED_MAX: usize = 4;
const ENABLED: u64 = 1;

impl Tracers {
    pub(crate) fn read(code: &Code) -> Option<Self> {
        let probe = code.probe;
        let field = |path: &str| probe.field("ftrace_ops", path);
        let (next, function, flags) = (field("next")?, field("func")?, field("flags")?);
        let (saved, hashes) = (field("saved_func"), field("func_hash"));
        let trampoline = field("trampoline").zip(field("trampoline_size"));
        let filter = probe.field("ftrace_ops_hash", "filter_hash");
        let mut found = Self { changing: is_held(probe, "ftrace_lock"), ..Self::default() };
        let end = probe.symbol("ftrace_list_end");
        let mut at = probe.word("ftrace_ops_list")?;
        let mut seen = IntegerSet::default();
        while at != 0 && Some(at) != end {
            if seen.len() == TRACERS_MAX || !seen.insert(at) {
                probe.mark_torn();
                break;
            }
            let reader = probe.reader;
            let Some(called) = reader.pointer(at, function) else {
                probe.mark_torn();
                break;
            };
            // With a filter by process the tracer calls a function of its own, which calls the registered one.
            let handler = saved.and_then(|saved| reader.pointer(at, saved)).filter(|saved| *saved != 0);
            let handler = handler.filter(|_| code.is_kernel_text(called)).unwrap_or(called);
            if let Some((start, bytes)) = trampoline {
                let start = reader.pointer(at, start).filter(|start| *start != 0);
                let bytes = reader.number(at, bytes).filter(|bytes| *bytes <= TRAMPOLINE_BYTES_MAX);
                found
                    .trampolines
                    .extend(start.zip(bytes).map(|(start, bytes)| start..start.saturating_add(bytes)));
            }
            let hash = hashes
                .and_then(|hashes| reader.pointer(at, hashes))
                .zip(filter)
                .and_then(|(hashes, filter)| reader.pointer(hashes, filter));
            let functions = hash.and_then(|hash| Entries::read(probe, hash)).unwrap_or_default();
            let enabled = reader.number(at, flags).unwrap_or(0) & ENABLED != 0;
            found.add(code, handler, &functions, enabled);
            at = reader.pointer(at, next)?;
        }
        if let Some(direct) = probe.word("direct_functions").and_then(|hash| Entries::read(probe, hash)) {
            found.direct.extend(direct.0.into_iter().map(|(_, direct)| direct));
        }
        if found.changing {
            probe.mark_torn();
        }
        Some(found)
    }

    fn add(&mut self, code: &Code, handler: u64, functions: &Entries, enabled: bool) {
        self.handlers.insert(handler);
        let label = |address: u64| code.label(address).unwrap_or_else(|| format!("{address:#018x}"));
        let count = functions.0.len();
        let named: Vec<_> = functions.0.iter().take(NAMED_MAX).map(|(at, _)| entry_of(code, *at)).collect();
        let place = match count {
            0 => "every function".to_owned(),
            1..=NAMED_MAX => named.join(", "),
            _ => format!("{} and {} more", named.join(", "), count - NAMED_MAX),
        };
        if enabled && !code.is_kernel_text(handler) {
            self.violations.push(Violation {
                kind: ViolationKind::FtraceHook,
                object: place.clone(),
                symbol: named.first().cloned(),
                detail: format!(
                    "the function tracer calls code that is not the kernel's: {}",
                    label(handler)
                ),
                expected: "kernel text".into(),
                found: code.describe(handler),
            });
        }
        self.hooks.push(Hook {
            kind: HookKind::Ftrace,
            place,
            handler,
            symbol: code.label(handler),
            owner: code.owner_name(handler),
            detail: if enabled { "enabled" } else { "disabled" }.into(),
        });
    }

    /// Whether an address is a permitted target of a traced function's call site.
    pub(crate) fn may_lead_to(&self, code: &Code, target: u64) -> bool {
        self.changing
            || self.trampolines.iter().any(|trampoline| trampoline.contains(&target))
            || self.direct.contains(&target)
            // The calls in the tracer's own entry code lead to the tracing functions.
            || code.is_kernel_text(target)
            || self.handlers.contains(&target)
    }
}

/// The function that has this call site at its entry.
fn entry_of(code: &Code, site: u64) -> String {
    let label = code.label(site).unwrap_or_else(|| format!("{site:#018x}"));
    // A landing pad (endbr64) can precede the site.
    label.strip_suffix("+0x4").map(str::to_owned).unwrap_or(label)
}

/// Whether a mutex has an owner.
pub(crate) fn is_held(probe: &Probe, mutex: &str) -> bool {
    const FLAGS: u64 = 7;
    probe.word(mutex).is_some_and(|owner| owner & !FLAGS != 0)
}

/// The functions in one of the tracer's hash tables: call site, and the function that is called there directly.
#[derive(Default)]
struct Entries(Vec<(u64, u64)>);

impl Entries {
    fn read(probe: &Probe, hash: u64) -> Option<Self> {
        let hash = Some(hash).filter(|hash| *hash != 0)?;
        let field = |path: &str| probe.field("ftrace_hash", path);
        let entry = |path: &str| probe.field("ftrace_func_entry", path);
        let bits = probe.reader.number(hash, field("size_bits")?)?.min(BUCKETS_BITS_MAX);
        let buckets = probe.reader.pointer(hash, field("buckets")?)?;
        let (node, site, direct): (Field, Field, Option<Field>) =
            (entry("hlist")?, entry("ip")?, entry("direct"));
        let mut entries = Vec::new();
        for bucket in 0..1_u64 << bits {
            let mut link = probe.reader.u64(buckets.checked_add(bucket * 8)?)?;
            while link != 0 && entries.len() < FUNCTIONS_MAX {
                let at = link.wrapping_sub(node.offset_bytes);
                let called = direct.and_then(|direct| probe.reader.pointer(at, direct));
                entries.push((probe.reader.pointer(at, site)?, called.unwrap_or(0)));
                link = probe.reader.u64(link)?;
            }
        }
        entries.sort_unstable();
        Some(Self(entries))
    }
}
