use std::collections::BTreeMap;

use crate::{btf::Field, fact::Module, hash::IntegerSet, probe::Probe};

/// All modules, from every view that contains some.
#[derive(Default)]
pub(crate) struct Modules {
    pub(crate) all: Vec<Module>,
    /// Address of each one's `struct module`, in the same order.
    pub(crate) structures: Vec<u64>,
    /// Index of each live module that is missing from one of the views, and the name of that view.
    pub(crate) hidden: Vec<(usize, &'static str)>,
    /// The memory of every module: start and bytes, with the module's index; ascending.
    pub(crate) areas: Vec<(u64, u64, usize)>,
}

const LIST: u8 = 1;
const KSET: u8 = 2;
const TREE: u8 = 4;
/// Not one of the kernel's lists: found by a scan of memory.
const MEMORY: u8 = 8;
const VIEWS: [(u8, &str); 4] = [(LIST, "list"), (KSET, "kset"), (TREE, "tree"), (MEMORY, "memory")];
const MODULES_MAX: usize = 4096;
const NAME_MAX: usize = 64;
const MODULE_BYTES_MAX: u64 = 1 << 30;

/// The fields of a module in this kernel.
struct Fields {
    list: Field,
    name: Field,
    state: Field,
    references: Option<Field>,
    /// Base and size of each part; the first is the code.
    parts: Vec<(Field, Field)>,
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let module = |path: &str| probe.field("module", path);
        let mut parts = Vec::new();
        if let Some(memory) = module("mem") {
            // 6.4 and later: one array of parts.
            let (_, count) = probe.types.array(memory)?;
            for index in 0..count.min(16) {
                let part = probe.types.element(memory, index)?;
                let inner = |path: &str| {
                    let inner = probe.field("module_memory", path)?;
                    Some(Field { offset_bytes: part.offset_bytes + inner.offset_bytes, ..inner })
                };
                parts.push((inner("base")?, inner("size")?));
            }
        } else {
            for layout in ["core_layout", "init_layout"] {
                parts.push((module(&format!("{layout}.base"))?, module(&format!("{layout}.size"))?));
            }
        }
        let references = module("refcnt");
        Some(Self {
            list: module("list")?,
            name: module("name")?,
            state: module("state")?,
            references,
            parts,
        })
    }
}

impl Modules {
    /// Reads every module of the guest. `None` when they cannot be read.
    pub(crate) fn read(probe: &Probe) -> Option<Self> {
        let fields = Fields::of(probe)?;
        let list = probe.reader.list(probe.symbol("modules")?, MODULES_MAX);
        let (kset, tree) = (from_kset(probe), from_tree(probe));
        let mut seen: BTreeMap<u64, u8> = BTreeMap::new();
        for link in &list.links {
            *seen.entry(link.wrapping_sub(fields.list.offset_bytes)).or_default() |= LIST;
        }
        for (view, members) in [(KSET, &kset), (TREE, &tree)] {
            for module in members.iter().flatten() {
                *seen.entry(*module).or_default() |= view;
            }
        }
        if !list.whole {
            probe.mark_torn();
        }
        let mut found = Self::default();
        for (address, views) in seen {
            let Some((module, areas)) = read_module(probe, &fields, address, views) else { continue };
            let lacks = |view: u8, usable: bool| usable && views & view == 0;
            // A module that is being loaded or unloaded enters and leaves the views one by one.
            let missing = match () {
                () if module.state != "live" || !list.whole => None,
                () if lacks(LIST, true) => Some("list"),
                () if lacks(KSET, kset.is_some()) => Some("kset"),
                () if lacks(TREE, tree.is_some()) => Some("tree"),
                () => None,
            };
            found.hidden.extend(missing.map(|view| (found.all.len(), view)));
            found.areas.extend(areas.into_iter().map(|(start, bytes)| (start, bytes, found.all.len())));
            found.all.push(module);
            found.structures.push(address);
        }
        found.areas.sort_unstable();
        Some(found)
    }

    /// Adds a module that none of the kernel's lists contains. `false` when there is no live module in use at the
    /// address.
    pub(crate) fn add_unlisted(&mut self, probe: &Probe, address: u64) -> bool {
        let found = Fields::of(probe).and_then(|fields| read_module(probe, &fields, address, MEMORY));
        // While it is being loaded or freed, a module is on no list either: it has no references, or is unformed.
        let Some((module, areas)) = found.filter(|(module, _)| {
            module.state == "live" && module.refcount.is_some_and(|count| count >= 0) && is_name(&module.name)
        }) else {
            return false;
        };
        let index = self.all.len();
        self.hidden.push((index, "list"));
        self.areas.extend(areas.into_iter().map(|(start, bytes)| (start, bytes, index)));
        self.areas.sort_unstable();
        self.all.push(module);
        self.structures.push(address);
        true
    }

    /// The module whose memory holds an address.
    pub(crate) fn at(&self, address: u64) -> Option<usize> {
        let end = self.areas.partition_point(|(start, _, _)| *start <= address);
        let (start, bytes, module) = self.areas.get(end.checked_sub(1)?)?;
        (address - start < *bytes).then_some(*module)
    }
}

/// Whether a text can be a module's name.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

fn read_module(probe: &Probe, fields: &Fields, address: u64, views: u8) -> Option<(Module, Vec<(u64, u64)>)> {
    let reader = probe.reader;
    let name = reader.string(address.checked_add(fields.name.offset_bytes)?, NAME_MAX)?;
    let part = |(base, size): &(Field, Field)| {
        let area = (reader.pointer(address, *base)?, reader.number(address, *size)?);
        (area.1 <= MODULE_BYTES_MAX).then_some(area)
    };
    let parts: Vec<_> = fields.parts.iter().filter_map(part).collect();
    let raw = fields.references.and_then(|field| reader.number(address, field));
    let references = raw.and_then(|raw| u32::try_from(raw).ok()).map(|raw| i64::from(raw.cast_signed()));
    let state = match reader.number(address, fields.state)? {
        0 => "live",
        1 => "coming",
        2 => "going",
        _ => "unformed",
    };
    let module = Module {
        name,
        address: parts.first()?.0,
        size_bytes: parts.iter().map(|(_, bytes)| bytes).sum(),
        state,
        // The kernel itself holds one reference to a live module.
        refcount: references.map(|count| count - 1),
        views: VIEWS
            .iter()
            .filter(|(bit, _)| views & bit != 0)
            .map(|(_, name)| *name)
            .collect::<Vec<_>>()
            .join("+"),
    };
    let areas = parts.into_iter().filter(|(start, bytes)| *start != 0 && *bytes != 0).collect();
    Some((module, areas))
}

/// The modules in sysfs; `None` when that list cannot be walked completely.
fn from_kset(probe: &Probe) -> Option<Vec<u64>> {
    let kset = probe.word("module_kset").filter(|kset| *kset != 0)?;
    let head = kset.wrapping_add(probe.field("kset", "list")?.offset_bytes);
    let entry = probe.field("module_kobject", "kobj.entry")?;
    let module = probe.field("module_kobject", "mod")?;
    let walk = probe.reader.list(head, MODULES_MAX);
    // Built-in code has an entry in sysfs too, but no module.
    let of_link = |link: &u64| probe.reader.pointer(link.wrapping_sub(entry.offset_bytes), module);
    walk.whole.then(|| walk.links.iter().filter_map(of_link).filter(|module| *module != 0).collect())
}

/// The modules in the tree for lookups by address; `None` when that cannot be walked completely.
fn from_tree(probe: &Probe) -> Option<Vec<u64>> {
    let tree = probe.symbol("mod_tree")?;
    let root_field = probe.field("latch_tree_root", "tree")?;
    let sequence = probe.reader.number(tree, probe.field("latch_tree_root", "seq")?)? & 1;
    let root = probe.types.element(root_field, sequence)?;
    // `tree[latch]` is an rb_root: one pointer; `node[latch]` an rb_node.
    let (left, right) = (probe.field("rb_node", "rb_left")?, probe.field("rb_node", "rb_right")?);
    let node = probe.types.element(probe.field("mod_tree_node", "node.node")?, sequence)?;
    let module = probe.field("mod_tree_node", "mod")?;
    let (mut modules, mut seen) = (IntegerSet::default(), IntegerSet::default());
    let mut pending = vec![probe.reader.pointer(tree, root)?];
    while let Some(at) = pending.pop() {
        if at == 0 {
            continue;
        }
        if seen.len() > MODULES_MAX || !seen.insert(at) {
            return None;
        }
        modules.insert(probe.reader.pointer(at.wrapping_sub(node.offset_bytes), module)?);
        pending.push(probe.reader.pointer(at, left)?);
        pending.push(probe.reader.pointer(at, right)?);
    }
    Some(modules.into_iter().collect())
}
