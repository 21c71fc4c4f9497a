use std::sync::Arc;

use retrovisor_guest::{Gfn, MemoryLayout};

use super::{Mapper, PageOwner, mapped::Mapped, referrers::Referrers};
use crate::{
    Kernel,
    linux::{
        resources::Resources,
        sections::ModuleSections,
        slabs::{SlabCache, SlabCaches},
        vmalloc::VmallocArea,
    },
};

/// The owner of each frame of one memory. A query is a table lookup.
pub struct OwnerMap {
    pub(super) layout: MemoryLayout,
    pub(super) slots: Vec<Slot>,
    pub(super) kernel: Kernel,
    pub(super) mapped: Mapped,
    pub(super) modules: Vec<(String, u64)>,
    pub(super) sections: Option<ModuleSections>,
    pub(super) caches: SlabCaches,
    pub(super) files: Vec<(u64, Option<Arc<str>>)>,
    pub(super) areas: Vec<VmallocArea>,
    pub(super) resources: Resources,
    /// Process or thread and name.
    pub(super) tasks: Vec<(i32, String)>,
    pub(super) referrers: Referrers,
    /// Parts of larger blocks of the page allocator, and the first frame of each, by index.
    pub(super) parts: Vec<(u32, u32)>,
}

/// The record of one frame.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    Unknown,
    Allocated,
    Reserved,
    Free,
    Offline,
    Anonymous,
    Kernel { virt: u64 },
    PerCpu { cpu: u32, offset: u64 },
    Module { module: u32, virt: u64 },
    Table { pid: Option<i32>, level: u8, virt: u64 },
    Stack { task: u32 },
    Descriptors,
    Slab { cache: u32, part: u32, objects: u16 },
    File { file: u32, page: u64 },
    Vmalloc { area: u32, offset: u64 },
}

const PAGE: u64 = 4096;
/// The name in /proc/iomem of memory without another name.
const RAM: &str = "System RAM";

impl OwnerMap {
    /// The owner of a frame. Takes well below a microsecond.
    #[must_use]
    pub fn explain(&self, gfn: Gfn) -> PageOwner {
        let Some(index) = self.index(gfn) else { return PageOwner::Unknown };
        match self.slots.get(index).copied().unwrap_or(Slot::Unknown) {
            Slot::Unknown => PageOwner::Unknown,
            Slot::Allocated => PageOwner::Allocated { referrer: self.referrer(index) },
            Slot::Reserved => PageOwner::Reserved {
                resource: self.resources.name(gfn.gpa().0).filter(|name| &**name != RAM),
                referrer: self.referrer(index),
            },
            Slot::Free => PageOwner::Free,
            Slot::Offline => PageOwner::Offline,
            Slot::Anonymous => {
                self.mapped.mappers(index, 1).next().map_or(PageOwner::Anonymous, PageOwner::Process)
            }
            Slot::Kernel { virt } => self.kernel_page(virt),
            Slot::PerCpu { cpu, offset } => self.per_cpu_page(cpu, offset),
            Slot::Module { module, virt } => self.module_page(module, virt),
            Slot::Table { pid, level, virt } => PageOwner::PageTable { pid, level, virt },
            Slot::Stack { task } => {
                let (pid, comm) = self.tasks.get(task as usize).cloned().unwrap_or_default();
                PageOwner::KernelStack { pid, comm }
            }
            Slot::Descriptors => PageOwner::PageDescriptors,
            Slot::Slab { cache, part, objects } => {
                let cache = self.caches.get(cache);
                PageOwner::Slab {
                    cache: cache.map(|cache| cache.name.clone()).unwrap_or_default(),
                    objects: cache.and_then(|cache| cache.objects(part.into(), objects.into())),
                }
            }
            Slot::File { file, page } => {
                let (inode, path) = self.files.get(file as usize).cloned().unwrap_or_default();
                let mappers = u32::try_from(self.mapped.count(index)).unwrap_or(u32::MAX);
                PageOwner::PageCache { file: path, inode, page, mappers }
            }
            Slot::Vmalloc { area, offset } => {
                let area = self.areas.get(area as usize);
                let caller = area.and_then(|area| self.label(area.caller?));
                PageOwner::Vmalloc { caller, offset }
            }
        }
    }

    /// The first `max` places at which processes map a frame, whatever its owner. Each has the number of the others.
    #[must_use]
    pub fn mappers(&self, gfn: Gfn, max: usize) -> Vec<Mapper> {
        self.index(gfn).map(|index| self.mapped.mappers(index, max).collect()).unwrap_or_default()
    }

    /// The variable or object that points to a frame, as text.
    fn referrer(&self, index: usize) -> Option<String> {
        let referrer = self.referrers.get(u32::try_from(index).ok()?)?;
        let offset = u64::from(referrer.offset);
        Some(match self.slots.get(referrer.holder as usize).copied()? {
            Slot::Kernel { virt } => self.kernel.place(virt + offset)?.name.to_owned(),
            Slot::PerCpu { cpu, offset: from } => match self.per_cpu_page(cpu, from + offset) {
                PageOwner::PerCpu { symbol: Some(symbol), .. } => format!("{symbol} of CPU {cpu}"),
                _ => format!("variables of CPU {cpu}"),
            },
            Slot::Module { module, .. } => format!("module {}", self.modules.get(module as usize)?.0),
            Slot::Slab { cache, .. } => format!("an object of {}", self.caches.get(cache)?.name),
            Slot::Vmalloc { area, .. } => {
                let caller = self.areas.get(area as usize)?.caller?;
                format!("mapped memory of {}", self.label(caller)?)
            }
            Slot::Allocated => "other kernel memory".to_owned(),
            Slot::Reserved => "other memory reserved at boot".to_owned(),
            _ => return None,
        })
    }

    /// For a frame of a slab: the cache, the frame's position in the slab, and how many objects the slab has.
    pub(crate) fn slab(&self, gfn: Gfn) -> Option<(&SlabCache, u64, u64)> {
        match self.slots.get(self.index(gfn)?)? {
            Slot::Slab { cache, part, objects } => {
                Some((self.caches.get(*cache)?, u64::from(*part), u64::from(*objects)))
            }
            _ => None,
        }
    }

    pub(super) fn index(&self, gfn: Gfn) -> Option<usize> {
        self.layout.index(gfn).and_then(|index| usize::try_from(index).ok())
    }

    /// The symbol of code in the kernel or a module.
    fn label(&self, virt: u64) -> Option<String> {
        if let Some(label) = self.kernel.label(virt) {
            return Some(label);
        }
        // For code in a module the module's name is used.
        let module = self.modules.iter().filter(|(_, start)| *start <= virt).max_by_key(|(_, start)| *start);
        module.map(|(name, _)| format!("module {name}"))
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

    fn per_cpu_page(&self, cpu: u32, offset: u64) -> PageOwner {
        let kernel = &self.kernel;
        let base = kernel.symbol("__per_cpu_start").unwrap_or(0);
        let virt = base.wrapping_add(offset);
        let inside = kernel.symbol("__per_cpu_end").is_some_and(|end| virt < end);
        let place = inside.then(|| kernel.symbols().place(virt)).flatten();
        PageOwner::PerCpu { cpu, offset, symbol: place.map(|place| place.name.to_owned()) }
    }

    fn module_page(&self, module: u32, virt: u64) -> PageOwner {
        let (name, start) = self.modules.get(module as usize).cloned().unwrap_or_default();
        let section = self.sections.as_ref().and_then(|sections| sections.section(&name, virt));
        match section {
            Some((section, offset)) => PageOwner::Module { name, section: Some(section), offset },
            None => PageOwner::Module { name, section: None, offset: virt.wrapping_sub(start) },
        }
    }
}
