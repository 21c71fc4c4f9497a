use std::cell::Cell;

use crate::{
    Kernel,
    btf::{Field, Types},
    hash::IntegerSet,
    reader::{Reader, Walk},
};

/// One kernel in one memory: the input of every reader of kernel structures.
pub(crate) struct Probe<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) types: &'a Types,
    pub(crate) reader: &'a Reader<'a, 'a>,
    /// Offset of each possible CPU's variables from their symbols.
    cpu_offsets: Vec<(u32, u64)>,
    torn: Cell<bool>,
}

const CPUS_MAX: u32 = 8192;

impl<'a> Probe<'a> {
    /// `None` when the kernel has no types: then its structures cannot be read.
    pub(crate) fn new(kernel: &'a Kernel, reader: &'a Reader<'a, 'a>) -> Option<Self> {
        let types = kernel.types()?;
        let mut probe = Self { kernel, types, reader, cpu_offsets: Vec::new(), torn: Cell::new(false) };
        probe.cpu_offsets = probe.possible_cpus();
        Some(probe)
    }

    fn possible_cpus(&self) -> Vec<(u32, u64)> {
        let offsets = self.kernel.symbol("__per_cpu_offset");
        let possible = self.kernel.symbol("__cpu_possible_mask");
        let count = self.kernel.symbol("nr_cpu_ids").and_then(|at| self.reader.u32(at)).unwrap_or(1);
        let offset = |cpu: u32| {
            let set = possible.and_then(|mask| self.reader.u8(mask + u64::from(cpu / 8)));
            // Without a mask, every CPU below the count is taken as possible.
            let possible = set.is_none_or(|byte| byte >> (cpu % 8) & 1 == 1);
            offsets.filter(|_| possible).and_then(|at| self.reader.u64(at + u64::from(cpu) * 8))
        };
        (0..count.min(CPUS_MAX)).filter_map(|cpu| Some((cpu, offset(cpu)?))).collect()
    }

    pub(crate) fn symbol(&self, name: &str) -> Option<u64> {
        self.kernel.symbol(name)
    }

    pub(crate) fn field(&self, structure: &str, path: &str) -> Option<Field> {
        self.types.field(structure, path)
    }

    /// The 64-bit variable of this name.
    pub(crate) fn word(&self, symbol: &str) -> Option<u64> {
        self.reader.u64(self.symbol(symbol)?)
    }

    /// The 32-bit variable of this name.
    pub(crate) fn half(&self, symbol: &str) -> Option<u32> {
        self.reader.u32(self.symbol(symbol)?)
    }

    /// A field of the variable of this name.
    pub(crate) fn number(&self, symbol: &str, structure: &str, path: &str) -> Option<u64> {
        self.reader.number(self.symbol(symbol)?, self.field(structure, path)?)
    }

    /// The addresses of a per-CPU variable, by CPU.
    pub(crate) fn each_cpu(&self, symbol: &str) -> impl Iterator<Item = (u32, u64)> {
        let symbol = self.symbol(symbol);
        self.cpu_offsets.iter().filter_map(move |(cpu, offset)| Some((*cpu, symbol?.wrapping_add(*offset))))
    }

    /// Offset of each possible CPU's variables from their symbols.
    pub(crate) fn cpu_offsets(&self) -> &[(u32, u64)] {
        &self.cpu_offsets
    }

    /// The nodes of a red-black tree whose `rb_root` is at `root`, in no particular order. `None` when the kernel does
    /// not describe its trees.
    pub(crate) fn tree(&self, root: u64, max: usize) -> Option<Walk> {
        let (left, right) = (self.field("rb_node", "rb_left")?, self.field("rb_node", "rb_right")?);
        let (mut links, mut seen) = (Vec::new(), IntegerSet::default());
        let mut pending = vec![self.reader.u64(root)];
        while let Some(at) = pending.pop() {
            let Some(at) = at else { return Some(Walk { links, whole: false }) };
            if at == 0 {
                continue;
            }
            if links.len() >= max || !seen.insert(at) {
                return Some(Walk { links, whole: false });
            }
            links.push(at);
            pending.extend([self.reader.pointer(at, left), self.reader.pointer(at, right)]);
        }
        Some(Walk { links, whole: true })
    }

    /// Records that a structure was in the middle of an update, or invalid.
    pub(crate) fn mark_torn(&self) {
        self.torn.set(true);
    }

    pub(crate) fn is_torn(&self) -> bool {
        self.torn.get()
    }
}
