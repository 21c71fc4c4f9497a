//! The maple tree, in which kernels since 6.1 keep the areas of a process.

use super::xarray::Entries;
use crate::{hash::IntegerSet, probe::Probe};

const NODES_MAX: usize = 1 << 16;
const DEPTH_MAX: u32 = 12;
/// Nodes are 256 bytes and aligned to that size; the low bits of a pointer are the node's kind.
const NODE_BYTES: usize = 256;
const KIND_LEAF: u64 = 1;
const KIND_RANGE: u64 = 2;
const KIND_ALLOCATION: u64 = 3;
/// Internal entries below this are markers, not nodes.
const NODE_MIN: u64 = 4096;

/// The pointers in a maple tree, from the value of `ma_root`; `whole` is false when part of it was invalid.
pub(super) fn entries(probe: &Probe, root: u64, max: usize) -> Entries {
    let mut entries = Entries { pointers: Vec::new(), whole: true };
    if root == 0 {
        return entries;
    }
    if root & 3 != 2 || root <= NODE_MIN {
        // The root of a tree with one entry is the entry itself.
        entries.pointers.push(root);
        return entries;
    }
    let slots_of = |structure: &str| {
        let (pivots, slots) = (probe.field(structure, "pivot")?, probe.field(structure, "slot")?);
        let count = probe.types.array(slots)?.1;
        let at = |bytes: u64| usize::try_from(bytes).ok().filter(|at| at % 8 == 0 && *at < NODE_BYTES);
        Some((
            at(pivots.offset_bytes)? / 8,
            at(slots.offset_bytes)? / 8,
            usize::try_from(count).ok()?.min(31),
        ))
    };
    let (Some(range), Some(allocation)) = (slots_of("maple_range_64"), slots_of("maple_arange_64")) else {
        entries.whole = false;
        return entries;
    };
    let mut seen = IntegerSet::default();
    let mut pending = vec![(root, u64::MAX, 0)];
    while let Some((encoded, last, depth)) = pending.pop() {
        let (node, kind) = (encoded & !0xff, encoded >> 3 & 0xf);
        let (pivots, slots, count) = match kind {
            KIND_LEAF | KIND_RANGE => range,
            KIND_ALLOCATION => allocation,
            _ => {
                entries.whole = false;
                continue;
            }
        };
        let mut bytes = [0; NODE_BYTES];
        if depth == DEPTH_MAX
            || seen.len() >= NODES_MAX
            || !seen.insert(node)
            || probe.reader.read(node, &mut bytes).is_none()
        {
            entries.whole = false;
            continue;
        }
        let word = |at: usize| bytes.get(at * 8..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        for slot in 0..count {
            // The last slot has no pivot; before it a pivot of 0 ends the node too.
            let pivot = (slot + 1 < count).then(|| word(pivots + slot).unwrap_or(0));
            let end = pivot.filter(|pivot| slot == 0 || *pivot != 0).unwrap_or(last);
            let entry = word(slots + slot).unwrap_or(0);
            if kind == KIND_LEAF {
                if entry != 0 && entry.is_multiple_of(4) {
                    if entries.pointers.len() == max {
                        entries.whole = false;
                        return entries;
                    }
                    entries.pointers.push(entry);
                }
            } else if entry > NODE_MIN {
                pending.push((entry, end, depth + 1));
            }
            if end >= last {
                break;
            }
        }
    }
    entries
}
