use super::code::Code;
use crate::{
    btf::Field,
    fact::{Hook, HookKind, Violation, ViolationKind},
};

/// The packet hooks of all network namespaces.
#[derive(Default)]
pub(crate) struct PacketHooks {
    pub(crate) hooks: Vec<Hook>,
    pub(crate) violations: Vec<Violation>,
}

const NAMESPACES_MAX: usize = 1024;
const HOOKS_MAX: u64 = 1024;
const ALL_HOOKS_MAX: usize = 16_384;
const FAMILIES: [(&str, &str); 4] = [
    ("ipv4", "nf.hooks_ipv4"),
    ("ipv6", "nf.hooks_ipv6"),
    ("arp", "nf.hooks_arp"),
    ("bridge", "nf.hooks_bridge"),
];
const POINTS: [&str; 6] = ["prerouting", "local-in", "forward", "local-out", "postrouting", "broute"];
const POINTS_ARP: [&str; 3] = ["in", "out", "forward"];

impl PacketHooks {
    pub(crate) fn read(code: &Code) -> Option<Self> {
        let probe = code.probe;
        let link = probe.field("net", "list")?;
        let namespaces = probe.reader.list(probe.symbol("net_namespace_list")?, NAMESPACES_MAX);
        let mut found = Self::default();
        for (number, at) in namespaces.links.into_iter().enumerate() {
            let net = at.wrapping_sub(link.offset_bytes);
            for (family, path) in FAMILIES {
                let Some(points) = probe.field("net", path) else { continue };
                let Some((_, count)) = probe.types.array(points) else { continue };
                for point in 0..count.min(16) {
                    let Some(entry) = probe.types.element(points, point) else { continue };
                    let names: &[&str] = if family == "arp" { &POINTS_ARP } else { &POINTS };
                    let name = usize::try_from(point).ok().and_then(|point| names.get(point).copied());
                    let namespace =
                        if number == 0 { String::new() } else { format!(" (namespace {number})") };
                    let place = format!("{family} {}{namespace}", name.unwrap_or("other"));
                    let entries = probe.reader.pointer(net, entry).filter(|entries| *entries != 0);
                    if let Some(entries) = entries {
                        found.add_all(code, &place, entries);
                    }
                }
            }
        }
        Some(found)
    }

    fn add_all(&mut self, code: &Code, place: &str, entries: u64) -> Option<()> {
        let (probe, reader) = (code.probe, code.probe.reader);
        let count =
            reader.number(entries, probe.field("nf_hook_entries", "num_hook_entries")?)?.min(HOOKS_MAX);
        let first = entries.checked_add(probe.field("nf_hook_entries", "hooks")?.offset_bytes)?;
        let size = probe.types.size_of("nf_hook_entry")?;
        let function = probe.field("nf_hook_entry", "hook")?;
        let priority: Option<Field> = probe.field("nf_hook_ops", "priority");
        // The descriptions follow the hooks, in the same order.
        let descriptions = first.checked_add(size.checked_mul(count)?)?;
        for index in 0..count {
            if self.hooks.len() == ALL_HOOKS_MAX {
                return None;
            }
            let handler = reader.pointer(first.checked_add(index * size)?, function)?;
            let description = reader.u64(descriptions.checked_add(index * 8)?).filter(|at| *at != 0);
            let priority = description.zip(priority).and_then(|(at, field)| reader.number(at, field));
            let priority = priority.and_then(|raw| u32::try_from(raw).ok()).map(u32::cast_signed);
            // A hook that is being removed is replaced by one that accepts every packet.
            if !code.is_accounted(handler) {
                self.violations.push(Violation {
                    kind: ViolationKind::NetfilterHook,
                    object: place.to_owned(),
                    symbol: code.label(handler),
                    detail: match code.owner_name(handler) {
                        Some(owner) => format!("packets pass through code of {owner}, which hides"),
                        None => "packets pass through code that belongs to nobody".to_owned(),
                    },
                    expected: "kernel text or a module's".into(),
                    found: code.describe(handler),
                });
            }
            self.hooks.push(Hook {
                kind: HookKind::Netfilter,
                place: place.to_owned(),
                handler,
                symbol: code.label(handler),
                owner: code.owner_name(handler),
                detail: priority.map(|priority| format!("priority {priority}")).unwrap_or_default(),
            });
        }
        Some(())
    }
}
