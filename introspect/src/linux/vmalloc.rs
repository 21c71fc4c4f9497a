use crate::{btf::Field, hash::IntegerSet, probe::Probe};

/// One area of the kernel's vmalloc space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmallocArea {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The code that allocated it, where the area has a description.
    pub(crate) caller: Option<u64>,
}

const AREAS_MAX: usize = 1 << 17;
/// Bound on `VMAP_NODES`.
const NODES_MAX: u64 = 256;

/// Every area of the vmalloc space, ascending. Areas are in one tree in kernels up to 6.8, later in several.
pub(crate) fn areas(probe: &Probe) -> Option<Vec<VmallocArea>> {
    let fields = Fields {
        left: probe.field("rb_node", "rb_left")?,
        right: probe.field("rb_node", "rb_right")?,
        start: probe.field("vmap_area", "va_start")?,
        end: probe.field("vmap_area", "va_end")?,
        node: probe.field("vmap_area", "rb_node")?,
        description: probe.field("vmap_area", "vm")?,
        caller: probe.field("vm_struct", "caller"),
    };
    let mut roots = Vec::new();
    if let (Some(nodes), Some(count), Some(size), Some(root)) = (
        probe.word("vmap_nodes").filter(|nodes| *nodes != 0),
        probe.half("nr_vmap_nodes"),
        probe.types.size_of("vmap_node"),
        probe.field("vmap_node", "busy.root"),
    ) {
        for node in 0..u64::from(count).min(NODES_MAX) {
            roots.extend(probe.reader.pointer(nodes.checked_add(node * size)?, root));
        }
    } else {
        roots.push(probe.word("vmap_area_root")?);
    }
    let mut found = Vec::new();
    let mut seen = IntegerSet::default();
    for root in roots {
        if !fields.walk(probe, root, &mut seen, &mut found) {
            probe.mark_torn();
        }
    }
    found.sort_unstable_by_key(|area| area.start);
    Some(found)
}

struct Fields {
    left: Field,
    right: Field,
    start: Field,
    end: Field,
    node: Field,
    description: Field,
    caller: Option<Field>,
}

impl Fields {
    fn walk(
        &self,
        probe: &Probe,
        root: u64,
        seen: &mut IntegerSet<u64>,
        found: &mut Vec<VmallocArea>,
    ) -> bool {
        let mut pending = vec![root];
        while let Some(at) = pending.pop() {
            if at == 0 {
                continue;
            }
            if seen.len() >= AREAS_MAX || !seen.insert(at) {
                return false;
            }
            let area = at.wrapping_sub(self.node.offset_bytes);
            let word = |field: Field| probe.reader.pointer(area, field);
            let (Some(start), Some(end)) = (word(self.start), word(self.end)) else { return false };
            let description = word(self.description).filter(|at| *at != 0);
            let caller = description
                .zip(self.caller)
                .and_then(|(at, caller)| probe.reader.pointer(at, caller))
                .filter(|caller| *caller != 0);
            if start < end {
                found.push(VmallocArea { start, end, caller });
            }
            let (Some(left), Some(right)) =
                (probe.reader.pointer(at, self.left), probe.reader.pointer(at, self.right))
            else {
                return false;
            };
            pending.extend([left, right]);
        }
        true
    }
}
