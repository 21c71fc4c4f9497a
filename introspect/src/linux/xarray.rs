use crate::probe::Probe;

/// The pointers in an xarray (idr, radix tree), of any depth; `whole` is false when part of it was invalid.
pub(crate) struct Entries {
    pub(crate) pointers: Vec<u64>,
    pub(crate) whole: bool,
}

const NODES_MAX: usize = 1 << 16;
const DEPTH_MAX: u32 = 11;
/// Internal entries below this are markers (retry, zero), not nodes.
const NODE_MIN: u64 = 4096;

impl Entries {
    /// Walks from the value of `xa_head`; `None` when the kernel does not describe its nodes.
    pub(crate) fn walk(probe: &Probe, head: u64) -> Option<Self> {
        let slots = probe.field("xa_node", "slots")?;
        let (_, count) = probe.types.array(slots)?;
        let mut entries = Self { pointers: Vec::new(), whole: true };
        let mut nodes = 0;
        let mut pending = vec![(head, 0)];
        while let Some((entry, depth)) = pending.pop() {
            if entry.is_multiple_of(4) {
                if entry != 0 {
                    entries.pointers.push(entry);
                }
                continue;
            }
            if entry & 3 != 2 || entry < NODE_MIN {
                continue;
            }
            let mut node = vec![0; usize::try_from(count.min(64) * 8).unwrap_or(0)];
            nodes += 1;
            let read = probe.reader.read((entry - 2).checked_add(slots.offset_bytes)?, &mut node);
            if nodes > NODES_MAX || depth == DEPTH_MAX || read.is_none() {
                entries.whole = false;
                continue;
            }
            let children = node.as_chunks::<8>().0.iter().rev();
            pending.extend(children.map(|child| (u64::from_le_bytes(*child), depth + 1)));
        }
        Some(entries)
    }
}
