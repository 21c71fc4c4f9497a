use std::fmt;

use retrovisor_guest::{Gfn, MemoryLayout, MemoryView};

use crate::{
    Kernel, Observation,
    linux::frames::{FrameKinds, Kind},
    linux::modules::Modules,
    pages::Pages,
    paging::AddressSpace,
    probe::Probe,
    reader::Reader,
};

/// Whose a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageOwner {
    /// The kernel's image: code, constants, variables.
    Kernel {
        /// `text`, `rodata`, `data` or `init` (freed after boot).
        part: &'static str,
        /// The frame's kernel-virtual address.
        virt: u64,
        /// The symbol that the frame's first byte lies in.
        symbol: Option<String>,
        /// How far into the symbol.
        offset: u64,
    },
    /// The variables of one CPU.
    PerCpu {
        /// The CPU.
        cpu: u32,
        /// Offset in the CPU's area; a symbol's address in the image's per-CPU section.
        offset: u64,
        /// The per-CPU variable that the frame's first byte lies in.
        symbol: Option<String>,
    },
    /// A module's memory.
    Module {
        /// The module.
        name: String,
        /// From the start of the module's part.
        offset: u64,
    },
    /// A page table.
    PageTable {
        /// The process, or `None` for the kernel's.
        pid: Option<i32>,
        /// 1 holds pages, 5 is the top.
        level: u8,
        /// First virtual address it covers.
        virt: u64,
    },
    /// A task's kernel stack.
    KernelStack {
        /// The task.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// Memory of a process: anonymous, or shared with others.
    Process {
        /// The process (of several that map the frame, the one with the lowest id).
        pid: i32,
        /// Its name.
        comm: String,
        /// Where it maps the frame.
        virt: u64,
    },
    /// Anonymous memory that no process maps at this instant.
    Anonymous,
    /// A file's contents.
    PageCache {
        /// The file's name in its directory, where it has one.
        file: Option<String>,
        /// Its inode number.
        inode: u64,
        /// Offset in the file, in pages.
        page: u64,
    },
    /// Objects of the kernel's allocator.
    Slab {
        /// The cache: `task_struct`, `kmalloc-64`.
        cache: String,
    },
    /// The kernel's array of page descriptors.
    PageDescriptors,
    /// Free.
    Free,
    /// In use for something that no map here names.
    Unknown,
}

/// Who owns each frame of one memory. Building it walks every page table and descriptor once; asking is a lookup.
pub struct OwnerMap {
    layout: MemoryLayout,
    slots: Vec<Slot>,
    kernel: Kernel,
    kinds: FrameKinds,
    modules: Vec<String>,
    /// Process or thread and name.
    tasks: Vec<(i32, String)>,
}

#[derive(Clone, Copy)]
enum Slot {
    Other,
    Kernel { virt: u64 },
    PerCpu { cpu: u32, offset: u64 },
    Module { module: u32, offset: u64 },
    Table { task: Option<u32>, level: u8, virt: u64 },
    Stack { task: u32 },
    Process { task: u32, virt: u64 },
    Descriptors,
}

/// Page tables walked, over all processes: those of 512 GiB of mappings.
const TABLES_MAX: u32 = 1 << 18;
const PAGE: u64 = 4096;
const LOWER_HALF_END: u64 = 0x00ff_ffff_ffff_ffff;
const STACK_BYTES_MAX: u64 = 64 << 10;
const PERCPU_BYTES_MAX: u64 = 4 << 20;
/// A mapping is marked up to here: the direct map would otherwise claim everything.
const MAPPING_BYTES_MAX: u64 = 2 << 20;

impl OwnerMap {
    /// Maps every frame of a memory; the observation, of the same memory, names its tasks.
    #[must_use]
    pub fn build(kernel: &Kernel, view: &dyn MemoryView, observation: &Observation) -> Self {
        let layout = view.layout().clone();
        let count = usize::try_from(layout.pages()).unwrap_or(0);
        let pages = Pages::new(view);
        let reader = Reader::new(&pages, kernel.address_space());
        let mut map = Self {
            slots: vec![Slot::Other; count],
            layout,
            kernel: kernel.clone(),
            kinds: FrameKinds::default(),
            modules: Vec::new(),
            tasks: Vec::new(),
        };
        if let Some(probe) = Probe::new(kernel, &reader) {
            map.kinds = FrameKinds::read(&probe, &map.layout);
            map.processes(&probe, observation);
            map.kernel_tables(&probe);
            map.descriptors(&probe);
            map.per_cpu(&probe);
            map.module_memory(&probe);
        }
        map.image();
        map
    }

    /// Whose a frame is. Costs well below a microsecond but for the names it copies.
    #[must_use]
    pub fn explain(&self, gfn: Gfn) -> PageOwner {
        let Some(index) = self.layout.index(gfn).and_then(|index| usize::try_from(index).ok()) else {
            return PageOwner::Unknown;
        };
        let task = |task: u32| self.tasks.get(task as usize).cloned().unwrap_or_default();
        match self.slots.get(index).copied().unwrap_or(Slot::Other) {
            Slot::Kernel { virt } => self.kernel_page(virt),
            Slot::PerCpu { cpu, offset } => {
                let base = self.kernel.symbol("__per_cpu_start").unwrap_or(0);
                let place = self.kernel.symbols().place(base.wrapping_add(offset));
                PageOwner::PerCpu { cpu, offset, symbol: place.map(|place| place.name.to_owned()) }
            }
            Slot::Module { module, offset } => {
                let name = self.modules.get(module as usize).cloned().unwrap_or_default();
                PageOwner::Module { name, offset }
            }
            Slot::Table { task: owner, level, virt } => {
                PageOwner::PageTable { pid: owner.map(|owner| task(owner).0), level, virt }
            }
            Slot::Stack { task: owner } => {
                let (pid, comm) = task(owner);
                PageOwner::KernelStack { pid, comm }
            }
            Slot::Process { task: owner, virt } => {
                let (pid, comm) = task(owner);
                PageOwner::Process { pid, comm, virt }
            }
            Slot::Descriptors => PageOwner::PageDescriptors,
            Slot::Other => match self.kinds.kind(index) {
                Kind::Unknown => PageOwner::Unknown,
                Kind::Free => PageOwner::Free,
                Kind::Anonymous => PageOwner::Anonymous,
                Kind::Slab { cache } => PageOwner::Slab { cache: self.kinds.cache(cache).to_owned() },
                Kind::File { file, page } => {
                    let (inode, name) = self.kinds.file(file);
                    PageOwner::PageCache { file: name.map(str::to_owned), inode, page }
                }
            },
        }
    }

    fn set(&mut self, gfn: Gfn, slot: Slot) {
        if let Some(place) =
            self.layout.index(gfn).and_then(|at| self.slots.get_mut(usize::try_from(at).ok()?))
        {
            *place = slot;
        }
    }

    fn image(&mut self) {
        let image = *self.kernel.image();
        for offset in (0..image.bytes).step_by(4096) {
            // Freed parts (start-up code and data) are in use for other things.
            let gfn = Gfn(image.gpa.gfn().0 + offset / PAGE);
            let index = self.layout.index(gfn).and_then(|index| usize::try_from(index).ok());
            let reused = index.is_none_or(|index| {
                !matches!(self.kinds.kind(index), Kind::Unknown)
                    || !matches!(self.slots.get(index), Some(Slot::Other))
            });
            if !reused {
                self.set(gfn, Slot::Kernel { virt: image.virt + offset });
            }
        }
    }

    fn kernel_page(&self, virt: u64) -> PageOwner {
        let kernel = &self.kernel;
        let between = |start: &str, end: &str| {
            let range = kernel.symbol(start).zip(kernel.symbol(end));
            range.is_some_and(|(start, end)| (start & !(PAGE - 1)..end).contains(&virt))
        };
        let part = match () {
            () if kernel.text().contains(&virt) => "text",
            () if between("__start_rodata", "__end_rodata") => "rodata",
            () if between("__init_begin", "__init_end") => "init",
            () => "data",
        };
        let place = kernel.place(virt);
        let offset = place.map_or(0, |place| place.offset);
        PageOwner::Kernel { part, virt, symbol: place.map(|place| place.name.to_owned()), offset }
    }

    fn processes(&mut self, probe: &Probe, observation: &Observation) {
        let (Some(memory), Some(pgd)) = (probe.field("task_struct", "mm"), probe.field("mm_struct", "pgd"))
        else {
            return;
        };
        let stack = probe.field("task_struct", "stack");
        let stack_bytes = probe.symbol("init_stack").and_then(|at| Some(probe.kernel.place(at)?.size));
        let stack_bytes = stack_bytes.unwrap_or(4 * PAGE).min(STACK_BYTES_MAX);
        let mut budget = TABLES_MAX;
        let mut tops = crate::hash::IntegerSet::default();
        for task in observation.linux.iter().flat_map(|linux| &linux.tasks) {
            let Ok(owner) = u32::try_from(self.tasks.len()) else { return };
            self.tasks.push((task.pid, task.comm.clone()));
            if let Some(base) = stack.and_then(|stack| probe.reader.pointer(task.address, stack)) {
                for offset in (0..stack_bytes).step_by(4096) {
                    if let Some(gpa) = base.checked_add(offset).and_then(|virt| probe.reader.translate(virt))
                    {
                        self.set(gpa.gfn(), Slot::Stack { task: owner });
                    }
                }
            }
            let memory = probe.reader.pointer(task.address, memory).filter(|memory| *memory != 0);
            let top = memory.and_then(|memory| probe.reader.translate(probe.reader.pointer(memory, pgd)?));
            let Some(root) = top.filter(|top| tops.insert(top.0)) else { continue };
            let space = AddressSpace { root, ..probe.kernel.address_space() };
            let (mut mapped, mut tables) = (Vec::new(), Vec::new());
            space.walk(
                probe.reader.pages(),
                (0, LOWER_HALF_END),
                &mut budget,
                &mut |mapping| mapped.push(mapping),
                &mut |gfn, virt, level| tables.push((gfn, virt, level)),
            );
            for mapping in mapped {
                for offset in (0..mapping.bytes.min(MAPPING_BYTES_MAX)).step_by(4096) {
                    let gfn = Gfn(mapping.gpa.gfn().0 + offset / PAGE);
                    let index = self.layout.index(gfn).and_then(|index| usize::try_from(index).ok());
                    let Some(index) = index else { continue };
                    let anonymous = matches!(self.kinds.kind(index), Kind::Anonymous | Kind::Unknown);
                    if anonymous && matches!(self.slots.get(index), Some(Slot::Other)) {
                        self.set(gfn, Slot::Process { task: owner, virt: mapping.virt + offset });
                    }
                }
            }
            for (gfn, virt, level) in tables {
                self.set(gfn, Slot::Table { task: Some(owner), level, virt });
            }
        }
    }

    fn kernel_tables(&mut self, probe: &Probe) {
        let mut tables = Vec::new();
        probe.kernel.address_space().walk(
            probe.reader.pages(),
            (1 << 63, u64::MAX),
            &mut TABLES_MAX.clone(),
            &mut |_| (),
            &mut |gfn, virt, level| tables.push((gfn, virt, level)),
        );
        for (gfn, virt, level) in tables {
            self.set(gfn, Slot::Table { task: None, level, virt });
        }
    }

    fn descriptors(&mut self, probe: &Probe) {
        let (Some(base), Some(size)) = (probe.word("vmemmap_base"), probe.types.size_of("page")) else {
            return;
        };
        let end = self.layout.gfns().last().map_or(0, |last| last.0 + 1);
        let Some(bytes) = end.checked_mul(size) else { return };
        for offset in (0..bytes).step_by(4096) {
            if let Some(gpa) = base.checked_add(offset).and_then(|virt| probe.reader.translate(virt)) {
                self.set(gpa.gfn(), Slot::Descriptors);
            }
        }
    }

    fn per_cpu(&mut self, probe: &Probe) {
        let (Some(start), Some(end)) = (probe.symbol("__per_cpu_start"), probe.symbol("__per_cpu_end"))
        else {
            return;
        };
        let bytes = end.saturating_sub(start).min(PERCPU_BYTES_MAX);
        for (cpu, cpu_offset) in probe.cpu_offsets().to_vec() {
            for offset in (0..bytes).step_by(4096) {
                let virt = cpu_offset.wrapping_add(start).wrapping_add(offset);
                if let Some(gpa) = probe.reader.translate(virt) {
                    self.set(gpa.gfn(), Slot::PerCpu { cpu, offset });
                }
            }
        }
    }

    fn module_memory(&mut self, probe: &Probe) {
        let modules = Modules::read(probe).unwrap_or_default();
        for (start, bytes, module) in &modules.areas {
            let Ok(module) = u32::try_from(*module) else { continue };
            for offset in (0..*bytes).step_by(4096) {
                let Some(gpa) = start.checked_add(offset).and_then(|virt| probe.reader.translate(virt))
                else {
                    // A hostile size ends where nothing is mapped.
                    break;
                };
                self.set(gpa.gfn(), Slot::Module { module, offset });
            }
        }
        self.modules = modules.all.into_iter().map(|module| module.name).collect();
    }
}

impl fmt::Display for PageOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { part, symbol: Some(symbol), offset, .. } => {
                write!(f, "kernel {part} {symbol}+{offset:#x}")
            }
            Self::Kernel { part, virt, symbol: None, .. } => write!(f, "kernel {part} {virt:#018x}"),
            Self::PerCpu { cpu, symbol: Some(symbol), .. } => {
                write!(f, "variables of CPU {cpu} from {symbol}")
            }
            Self::PerCpu { cpu, offset, symbol: None } => {
                write!(f, "variables of CPU {cpu} from {offset:#x}")
            }
            Self::Module { name, offset } => write!(f, "module {name}+{offset:#x}"),
            Self::PageTable { pid: Some(pid), level, virt } => {
                write!(f, "page table of process {pid}, level {level}, for {virt:#018x}")
            }
            Self::PageTable { pid: None, level, virt } => {
                write!(f, "page table of the kernel, level {level}, for {virt:#018x}")
            }
            Self::KernelStack { pid, comm } => write!(f, "kernel stack of {pid} ({comm})"),
            Self::Process { pid, comm, virt } => write!(f, "process {pid} ({comm}) at {virt:#x}"),
            Self::Anonymous => f.write_str("anonymous memory"),
            Self::PageCache { file: Some(file), page, .. } => write!(f, "file {file}, page {page}"),
            Self::PageCache { file: None, inode, page } => write!(f, "file with inode {inode}, page {page}"),
            Self::Slab { cache } => write!(f, "slab {cache}"),
            Self::PageDescriptors => f.write_str("page descriptors"),
            Self::Free => f.write_str("free"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_said_in_words() {
        let process = PageOwner::Process { pid: 7, comm: "sh".into(), virt: 0x40_0000 };
        assert_eq!(process.to_string(), "process 7 (sh) at 0x400000");
        let table = PageOwner::PageTable { pid: None, level: 4, virt: 1 << 63 };
        assert_eq!(table.to_string(), "page table of the kernel, level 4, for 0x8000000000000000");
        assert_eq!(
            PageOwner::PageCache { file: None, inode: 5, page: 2 }.to_string(),
            "file with inode 5, page 2"
        );
    }
}
