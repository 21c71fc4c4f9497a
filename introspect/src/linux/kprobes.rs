use super::code::Code;
use crate::{
    btf::Field,
    fact::{Hook, HookKind, Violation, ViolationKind},
    hash::IntegerSet,
    probe::Probe,
};

/// The kprobes that are registered in this memory.
#[derive(Default)]
pub(crate) struct Kprobes {
    pub(crate) hooks: Vec<Hook>,
    pub(crate) violations: Vec<Violation>,
    addresses: IntegerSet<u64>,
}

const BUCKETS: u64 = 64;
const PROBES_MAX: usize = 1 << 16;
/// Bits of `kprobe.flags`: its code is gone, it is disabled, a jump replaced the breakpoint.
const FLAGS: [(u64, &str); 4] = [(1, "gone"), (2, "disabled"), (4, "optimised"), (8, "ftrace")];
const GONE_OR_DISABLED: u64 = 3;

struct Fields {
    node: Field,
    list: Field,
    address: Field,
    handler: Field,
    after: Option<Field>,
    flags: Field,
    /// From a return probe to its kprobe, and its handler.
    on_return: Option<(Field, Field)>,
}

impl Kprobes {
    pub(crate) fn read(code: &Code) -> Option<Self> {
        let probe = code.probe;
        let field = |path: &str| probe.field("kprobe", path);
        let fields = Fields {
            node: field("hlist")?,
            list: field("list")?,
            address: field("addr")?,
            handler: field("pre_handler")?,
            after: field("post_handler"),
            flags: field("flags")?,
            on_return: probe.field("kretprobe", "kp").zip(probe.field("kretprobe", "handler")),
        };
        let mut found = Self::default();
        let table = probe.symbol("kprobe_table")?;
        for bucket in 0..BUCKETS {
            let mut link = probe.reader.u64(table + bucket * 8)?;
            while link != 0 && found.addresses.len() < PROBES_MAX {
                let at = link.wrapping_sub(fields.node.offset_bytes);
                let Some(address) = probe.reader.pointer(at, fields.address) else {
                    probe.mark_torn();
                    break;
                };
                if !found.addresses.insert(address) {
                    break;
                }
                found.add_all(code, &fields, at, address);
                let Some(next) = probe.reader.u64(link) else { break };
                link = next;
            }
        }
        found.addresses.extend(going(probe));
        Some(found)
    }

    /// Adds a probe; for an aggregate probe, the probes at the same address that it stands for.
    fn add_all(&mut self, code: &Code, fields: &Fields, at: u64, address: u64) {
        let reader = code.probe.reader;
        let several = reader.pointer(at, fields.handler)
            == code.probe.symbol("aggr_pre_handler").filter(|handler| *handler != 0);
        if !several {
            self.add(code, fields, at, address);
            return;
        }
        let rest = PROBES_MAX.saturating_sub(self.hooks.len());
        for link in reader.list(at.wrapping_add(fields.list.offset_bytes), rest).links {
            self.add(code, fields, link.wrapping_sub(fields.list.offset_bytes), address);
        }
    }

    fn add(&mut self, code: &Code, fields: &Fields, at: u64, address: u64) {
        let (probe, reader) = (code.probe, code.probe.reader);
        let number = |field: Field| reader.pointer(at, field).filter(|value| *value != 0);
        let mut handler = number(fields.handler).or_else(|| number(fields.after?)).unwrap_or(0);
        let mut on_return = false;
        if handler != 0
            && Some(handler) == probe.symbol("pre_handler_kretprobe")
            && let Some((inner, function)) = fields.on_return
        {
            on_return = true;
            handler = reader.pointer(at.wrapping_sub(inner.offset_bytes), function).unwrap_or(0);
        }
        let place = code.label(address).unwrap_or_else(|| format!("{address:#018x}"));
        let flags = reader.number(at, fields.flags).unwrap_or(0);
        let mut said: Vec<_> =
            FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
        if on_return {
            said.push("return");
        }
        if handler != 0 && flags & GONE_OR_DISABLED == 0 && !code.is_kernel_text(handler) {
            self.violations.push(Violation {
                kind: ViolationKind::KprobeHook,
                object: place.clone(),
                symbol: probe.kernel.place(address).map(|place| place.name.to_owned()),
                detail: format!(
                    "a kprobe calls code that is not the kernel's: {}",
                    code.label(handler).unwrap_or_else(|| format!("{handler:#018x}"))
                ),
                expected: "kernel text".into(),
                found: code.describe(handler),
            });
        }
        self.hooks.push(Hook {
            kind: HookKind::Kprobe,
            place,
            handler,
            symbol: code.label(handler),
            owner: code.owner_name(handler),
            detail: said.join(" "),
        });
    }

    /// The end of the probed instruction at an address: a breakpoint, or a jump of five bytes.
    pub(crate) fn end_of_site(&self, at: u64) -> Option<u64> {
        (0..5)
            .map(|back| at.wrapping_sub(back))
            .find(|start| self.addresses.contains(start))
            .map(|start| start + 5)
    }
}

/// Optimised probes that have left the table: their jumps are removed later.
fn going(probe: &Probe) -> Vec<u64> {
    let field = |structure: &str, path: &str| probe.field(structure, path);
    let Some((list, address)) = field("optimized_kprobe", "list").zip(field("optimized_kprobe", "kp.addr"))
    else {
        return Vec::new();
    };
    let lists = ["unoptimizing_list", "freeing_list"].into_iter().filter_map(|name| probe.symbol(name));
    let links = lists.flat_map(|head| probe.reader.list(head, PROBES_MAX).links);
    links.filter_map(|link| probe.reader.pointer(link.wrapping_sub(list.offset_bytes), address)).collect()
}
