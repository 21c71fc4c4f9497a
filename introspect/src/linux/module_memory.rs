//! Finds modules in the memory into which modules are loaded, independently of the kernel's lists.

use std::ops::Range;

use super::modules::Modules;
use crate::probe::Probe;

/// Modules, the trampolines of traced functions and eBPF programs are between this address …
const FIRST: u64 = 0xffff_ffff_a000_0000;
/// … and this one.
const LAST: u64 = 0xffff_ffff_feff_ffff;
/// Bound on the page tables of the range.
const TABLES_MAX: u32 = 4096;
/// Bound on the scanned bytes that no known module accounts for.
const SCAN_BYTES_MAX: u64 = 32 << 20;
const FOUND_MAX: usize = 64;
const PAGE: u64 = 4096;

/// Scans the mapped memory that belongs to no known module. A `struct module` is inside its own module's memory and
/// contains the address at which that starts.
pub(crate) fn find_unlisted(probe: &Probe, modules: &mut Modules) {
    for address in candidates(probe, modules).unwrap_or_default().into_iter().take(FOUND_MAX) {
        modules.add_unlisted(probe, address);
    }
}

fn candidates(probe: &Probe, modules: &Modules) -> Option<Vec<u64>> {
    let base = base_offset(probe)?;
    let mut found = Vec::new();
    let mut budget = SCAN_BYTES_MAX;
    for area in unaccounted(probe, modules) {
        for virt in area.clone().step_by(4096) {
            let Some(rest) = budget.checked_sub(PAGE) else { return Some(found) };
            budget = rest;
            let page = probe.reader.translate(virt).and_then(|gpa| probe.reader.pages().frame(gpa.gfn()));
            let Some(page) = page else { continue };
            for (at, word) in (virt..).step_by(8).zip(page.as_chunks::<8>().0) {
                // The area's start address occurs in the area: check whether that word is the field of a module.
                if u64::from_le_bytes(*word) == area.start {
                    found.extend(
                        at.checked_sub(base).filter(|module| area.contains(module) && module % 8 == 0),
                    );
                }
            }
        }
    }
    Some(found)
}

/// Offset in a `struct module` of the address of that part of the module which contains the structure itself.
fn base_offset(probe: &Probe) -> Option<u64> {
    let Some(memory) = probe.field("module", "mem") else {
        return Some(probe.field("module", "core_layout.base")?.offset_bytes);
    };
    let data = probe.types.enumerator("MOD_DATA").and_then(|index| u64::try_from(index).ok())?;
    let part = probe.types.element(memory, data)?;
    Some(part.offset_bytes + probe.field("module_memory", "base")?.offset_bytes)
}

/// Contiguously mapped ranges that belong to no known module.
fn unaccounted(probe: &Probe, modules: &Modules) -> Vec<Range<u64>> {
    let image = probe.kernel.image();
    let first = FIRST.max(image.virt.saturating_add(image.bytes));
    let mut areas: Vec<Range<u64>> = Vec::new();
    probe.kernel.address_space().walk(
        probe.reader.pages(),
        (first, LAST),
        &mut TABLES_MAX.clone(),
        &mut |mapping| match areas.last_mut() {
            Some(area) if area.end == mapping.virt => area.end = area.end.saturating_add(mapping.bytes),
            _ => areas.push(mapping.virt..mapping.virt.saturating_add(mapping.bytes)),
        },
        &mut |_, _, _| (),
    );
    areas.retain(|area| modules.at(area.start).is_none());
    areas
}
