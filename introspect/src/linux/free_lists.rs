use crate::{btf::Field, probe::Probe};

const NODES_MAX: u64 = 1024;
const LISTS_MAX: u64 = 32;
const PAGES_MAX: usize = 1 << 16;
/// Free blocks up to this order have one list for each migration type; the lists after them are for huge pages.
const LOW_ORDERS: u64 = 4;
const HUGE_ORDER: u32 = 9;

/// The free blocks on per-CPU lists, which the buddy lists do not contain: descriptor and order of each.
pub(crate) fn of_cpus(probe: &Probe) -> Option<Vec<(u64, u32)>> {
    let zones = probe.field("pglist_data", "node_zones")?;
    let (_, zone_count) = probe.types.array(zones)?;
    let kept = Kept::of(probe)?;
    let mut found = Vec::new();
    for node in nodes(probe) {
        for zone in 0..zone_count.min(16) {
            let zone = node.checked_add(probe.types.element(zones, zone)?.offset_bytes)?;
            let Some(kept_at) = probe.reader.pointer(zone, kept.of_zone).filter(|at| *at != 0) else {
                continue;
            };
            for (_, offset) in probe.cpu_offsets() {
                kept.read(probe, kept_at.wrapping_add(*offset), &mut found);
            }
        }
    }
    Some(found)
}

fn nodes(probe: &Probe) -> Vec<u64> {
    if let Some(only) = probe.symbol("contig_page_data") {
        return vec![only];
    }
    let Some(table) = probe.symbol("node_data") else { return Vec::new() };
    let count = probe.half("nr_node_ids").map_or(1, u64::from).min(NODES_MAX);
    (0..count)
        .filter_map(|node| probe.reader.u64(table.checked_add(node * 8)?))
        .filter(|at| *at != 0)
        .collect()
}

struct Kept {
    /// The pointer from a zone to its per-CPU structure.
    of_zone: Field,
    /// Its lists, from the start of that structure.
    lists: Field,
    /// The link in a page descriptor.
    link: Field,
    ways: u64,
}

impl Kept {
    fn of(probe: &Probe) -> Option<Self> {
        let lists = probe.field("per_cpu_pages", "lists")?;
        let (of_zone, before) = match probe.field("zone", "per_cpu_pageset") {
            Some(field) => (field, 0),
            None => (probe.field("zone", "pageset")?, probe.field("per_cpu_pageset", "pcp")?.offset_bytes),
        };
        Some(Self {
            of_zone,
            lists: Field { offset_bytes: lists.offset_bytes + before, ..lists },
            link: probe.field("page", "pcp_list").or_else(|| probe.field("page", "lru"))?,
            ways: probe
                .types
                .enumerator("MIGRATE_PCPTYPES")
                .and_then(|ways| u64::try_from(ways).ok())?
                .max(1),
        })
    }

    fn read(&self, probe: &Probe, at: u64, found: &mut Vec<(u64, u32)>) {
        let count = probe.types.array(self.lists).map_or(0, |(_, count)| count.min(LISTS_MAX));
        for list in 0..count {
            let Some(head) = probe.types.element(self.lists, list) else { return };
            let walk = probe.reader.list(at.wrapping_add(head.offset_bytes), PAGES_MAX);
            if !walk.whole {
                probe.mark_torn();
            }
            let order = u32::try_from(list / self.ways).ok().filter(|order| u64::from(*order) < LOW_ORDERS);
            let order = order.unwrap_or(HUGE_ORDER);
            found.extend(walk.links.iter().map(|link| (link.wrapping_sub(self.link.offset_bytes), order)));
        }
    }
}
