use std::{cell::RefCell, num::NonZero, sync::Arc};

use retrovisor_guest::{Gfn, MemoryLayout, MemoryView};

use super::{Mapper, PageOwner, mapped::Mapped, referrers::Referrers};
use crate::{
    Kernel, Observation,
    hash::IntegerMap,
    linux::{
        frames::{Descriptors, Use},
        free_lists,
        modules::Modules,
        paths::Paths,
        resources::Resources,
        sections::ModuleSections,
        slabs::{SlabCache, SlabCaches},
        vmalloc::{self, VmallocArea},
    },
    pages::{PageShelf, Pages},
    probe::Probe,
    reader::Reader,
};

/// Maps the memories of one guest, one after the other, and re-reads only what changed between them: frames whose
/// contents have the name that they had (a view's tokens) are not read again.
pub struct OwnerReader {
    shelf: RefCell<PageShelf>,
    descriptors: Descriptors,
}

/// Frames kept from one memory to the next: 64 MiB.
const SHELF_FRAMES: NonZero<usize> = NonZero::new(16_384).unwrap();

/// Who owns each frame of one memory. Asking is a lookup.
pub struct OwnerMap {
    layout: MemoryLayout,
    slots: Vec<Slot>,
    kernel: Kernel,
    mapped: Mapped,
    modules: Vec<(String, u64)>,
    sections: Option<ModuleSections>,
    caches: SlabCaches,
    files: Vec<(u64, Option<Arc<str>>)>,
    areas: Vec<VmallocArea>,
    resources: Resources,
    /// Process or thread and name.
    tasks: Vec<(i32, String)>,
    referrers: Referrers,
}

#[derive(Clone, Copy, Debug)]
enum Slot {
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
/// What /proc/iomem calls memory that has no other name.
const RAM: &str = "System RAM";
const KERNEL_TABLES_MAX: u32 = 1 << 18;
const FILES_MAX: usize = 1 << 20;
const STACK_BYTES_MAX: u64 = 64 << 10;
const PERCPU_BYTES_MAX: u64 = 4 << 20;
/// The vmalloc space's bytes with 4 and with 5 levels.
const VMALLOC_BYTES: [u64; 2] = [32 << 40, 12_800 << 40];

impl OwnerReader {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { shelf: RefCell::new(PageShelf::new(SHELF_FRAMES)), descriptors: Descriptors::default() }
    }

    /// Maps every frame of a memory; the observation, of the same memory, names its tasks.
    pub fn read(&mut self, kernel: &Kernel, view: &dyn MemoryView, observation: &Observation) -> OwnerMap {
        let pages = Pages::with_shelf(view, &self.shelf);
        let reader = Reader::new(&pages, kernel.address_space());
        let layout = view.layout().clone();
        let count = usize::try_from(layout.pages()).unwrap_or(0);
        let mut map = OwnerMap {
            slots: vec![Slot::Unknown; count],
            layout,
            kernel: kernel.clone(),
            mapped: Mapped::default(),
            modules: Vec::new(),
            sections: None,
            caches: SlabCaches::default(),
            files: Vec::new(),
            areas: Vec::new(),
            resources: Resources::default(),
            tasks: Vec::new(),
            referrers: Referrers::default(),
        };
        if let Some(probe) = Probe::new(kernel, &reader) {
            let paths = Paths::new(&probe);
            self.descriptors.refresh(&probe, &map.layout);
            map.uses(&probe, &self.descriptors, paths.as_ref());
            map.kept_by_cpus(&probe, &self.descriptors);
            map.stacks(&probe, observation);
            let (mapped, tables) = Mapped::read(&probe, &map.layout, observation, paths.as_ref());
            map.mapped = mapped;
            for table in tables {
                map.claim(
                    table.gfn,
                    Slot::Table { pid: Some(table.pid), level: table.level, virt: table.virt },
                );
            }
            map.per_cpu(&probe);
            map.module_memory(&probe);
            map.kernel_tables(&probe);
            map.resources = Resources::read(&probe).unwrap_or_default();
        }
        map.image();
        map
    }
}

impl Default for OwnerReader {
    fn default() -> Self {
        Self::new()
    }
}

impl OwnerMap {
    /// Maps every frame of one memory. For several memories of one guest see [`OwnerReader`].
    #[must_use]
    pub fn build(kernel: &Kernel, view: &dyn MemoryView, observation: &Observation) -> Self {
        OwnerReader::new().read(kernel, view, observation)
    }

    /// Whose a frame is. Costs well below a microsecond.
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

    /// The places at which processes map a frame, whatever it is: the first `max`. Each says how many others there are.
    #[must_use]
    pub fn mappers(&self, gfn: Gfn, max: usize) -> Vec<Mapper> {
        self.index(gfn).map(|index| self.mapped.mappers(index, max).collect()).unwrap_or_default()
    }

    /// Finds out which kernel variable or object leads to the frames that nothing else names, by looking for
    /// pointers to them in the kernel's memory. Reads much more than the map itself: call it when such frames matter.
    pub fn trace_allocations(&mut self, view: &dyn MemoryView) {
        let kernel = self.kernel.clone();
        let pages = Pages::new(view);
        let reader = Reader::new(&pages, kernel.address_space());
        let Some(probe) = Probe::new(&kernel, &reader) else { return };
        // Variables name best, then objects, then other memory.
        let rank = |slot: &Slot| match slot {
            Slot::Kernel { virt } => (!kernel.text().contains(virt)).then_some(0),
            Slot::PerCpu { .. } => Some(1),
            Slot::Module { .. } => Some(2),
            Slot::Slab { .. } => Some(3),
            Slot::Vmalloc { .. } => Some(4),
            Slot::Allocated | Slot::Reserved => Some(5),
            _ => None,
        };
        let mut holders: Vec<(u8, u32, Gfn)> = (0_u32..)
            .zip(self.layout.gfns().zip(&self.slots))
            .filter_map(|(index, (gfn, slot))| Some((rank(slot)?, index, gfn)))
            .collect();
        holders.sort_unstable();
        let end = self.layout.gfns().last().map_or(0, |last| last.0 + 1);
        let wanted = |gfn: Gfn| {
            let index = self.index(gfn)?;
            matches!(self.slots.get(index), Some(Slot::Allocated | Slot::Reserved))
                .then(|| u32::try_from(index).ok())?
        };
        let holders = holders.into_iter().map(|(_, index, gfn)| (index, gfn));
        let Some(mut found) = Referrers::find(&probe, end, holders, &wanted) else { return };
        self.extend_to_blocks(&mut found);
        self.referrers = found;
    }

    /// A pointer leads to the first frame of a block: the others are parts of it. A block of the allocator is
    /// aligned to its size; what was taken at boot runs on to the next thing taken.
    fn extend_to_blocks(&self, found: &mut Referrers) {
        let is_variable = |found: &Referrers, index: u32| {
            let holder = found.get(index).and_then(|referrer| self.slots.get(referrer.holder as usize));
            matches!(holder, Some(Slot::Kernel { .. } | Slot::PerCpu { .. }))
        };
        let mut head: Option<(u32, u64, bool)> = None;
        for (index, (gfn, slot)) in (0_u32..).zip(self.layout.gfns().zip(&self.slots)) {
            let reserved = matches!(slot, Slot::Reserved);
            if !reserved && !matches!(slot, Slot::Allocated) {
                head = None;
                continue;
            }
            let within = head.filter(|(_, first, boot)| {
                let aligned = 1_u64 << first.trailing_zeros().min(10);
                *boot == reserved && (*boot || gfn.0 - first < aligned)
            });
            let known = found.get(index).is_some();
            match within {
                // Objects point back into the tables that a variable leads to: the variable names those better.
                Some((of, ..)) if !known || (reserved && !is_variable(found, index)) => {
                    found.share(index, of);
                }
                _ if known => head = Some((index, gfn.0, reserved)),
                _ => {}
            }
        }
    }

    /// What leads to a frame, in words.
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

    /// The cache of a frame that holds objects, which part of its slab the frame is, and how many objects that has.
    pub(crate) fn slab(&self, gfn: Gfn) -> Option<(&SlabCache, u64, u64)> {
        match self.slots.get(self.index(gfn)?)? {
            Slot::Slab { cache, part, objects } => {
                Some((self.caches.get(*cache)?, u64::from(*part), u64::from(*objects)))
            }
            _ => None,
        }
    }

    fn index(&self, gfn: Gfn) -> Option<usize> {
        self.layout.index(gfn).and_then(|index| usize::try_from(index).ok())
    }

    /// Code by symbol, of the kernel or of a module.
    fn label(&self, virt: u64) -> Option<String> {
        if let Some(label) = self.kernel.label(virt) {
            return Some(label);
        }
        // A caller lies in a module: its name is enough to know whom to ask.
        let module = self.modules.iter().filter(|(_, start)| *start <= virt).max_by_key(|(_, start)| *start);
        module.map(|(name, _)| format!("module {name}"))
    }

    /// Gives a frame to what the kernel's own structures say, if its descriptor does not say otherwise.
    fn claim(&mut self, gfn: Gfn, slot: Slot) {
        let place = self.index(gfn).and_then(|index| self.slots.get_mut(index));
        if let Some(place) = place
            && matches!(
                place,
                Slot::Unknown | Slot::Allocated | Slot::Reserved | Slot::Table { level: 0, .. }
            )
        {
            *place = slot;
        }
    }

    /// What the descriptors say.
    fn uses(&mut self, probe: &Probe, descriptors: &Descriptors, paths: Option<&Paths>) {
        self.caches = SlabCaches::new(probe);
        let mut files = IntegerMap::default();
        let host = probe.field("address_space", "host");
        let mut free_until = 0;
        for (index, gfn) in self.layout.gfns().enumerate().collect::<Vec<_>>() {
            let (mut used, mut part) = (descriptors.at(index), 0);
            if let Use::Tail { head } = used {
                // The first descriptor of a block tells for all of it.
                part = gfn.0.saturating_sub(head);
                used = self.index(Gfn(head)).map_or(Use::Missing, |head| descriptors.at(head));
            }
            let slot = match used {
                _ if gfn.0 < free_until => Slot::Free,
                Use::Free { order } => {
                    free_until = gfn.0 + (1 << order);
                    Slot::Free
                }
                Use::Missing => Slot::Unknown,
                Use::Plain | Use::Tail { .. } => Slot::Allocated,
                Use::Reserved => Slot::Reserved,
                Use::Offline => Slot::Offline,
                Use::Table => Slot::Table { pid: None, level: 0, virt: 0 },
                Use::Anonymous => Slot::Anonymous,
                Use::Slab { cache, objects } => match self.caches.number(probe, cache) {
                    Some(cache) => Slot::Slab { cache, part: u32::try_from(part).unwrap_or(0), objects },
                    None => Slot::Allocated,
                },
                Use::File { mapping, page } => {
                    let file = *files.entry(mapping).or_insert_with(|| {
                        let inode = probe.reader.pointer(mapping, host?)?;
                        self.file(probe, paths, mapping, inode)
                    });
                    file.map_or(Slot::Allocated, |file| Slot::File { file, page: page.wrapping_add(part) })
                }
            };
            if let Some(place) = self.slots.get_mut(index) {
                *place = slot;
            }
        }
    }

    /// The number of the file with this `address_space`, if that is one.
    fn file(&mut self, probe: &Probe, paths: Option<&Paths>, mapping: u64, inode: u64) -> Option<u32> {
        let own = probe.reader.pointer(inode, probe.field("inode", "i_mapping")?)?;
        let inner = inode.wrapping_add(probe.field("inode", "i_data")?.offset_bytes);
        if (own != mapping && inner != mapping) || self.files.len() >= FILES_MAX {
            return None;
        }
        let number = u32::try_from(self.files.len()).ok()?;
        let path = paths.and_then(|paths| paths.of_inode(probe, inode));
        self.files.push((paths.and_then(|paths| paths.inode_number(probe, inode)).unwrap_or(0), path));
        Some(number)
    }

    fn kept_by_cpus(&mut self, probe: &Probe, descriptors: &Descriptors) {
        for (descriptor, order) in free_lists::of_cpus(probe).unwrap_or_default() {
            let Some(first) = descriptors.frame_of(descriptor) else { continue };
            for number in 0..1_u64 << order {
                self.claim(Gfn(first.0 + number), Slot::Free);
            }
        }
    }

    fn stacks(&mut self, probe: &Probe, observation: &Observation) {
        let Some(stack) = probe.field("task_struct", "stack") else { return };
        let bytes = probe.symbol("init_stack").and_then(|at| Some(probe.kernel.place(at)?.size));
        let bytes = bytes.unwrap_or(4 * PAGE).min(STACK_BYTES_MAX);
        for task in observation.linux.iter().flat_map(|linux| &linux.tasks) {
            let Ok(owner) = u32::try_from(self.tasks.len()) else { return };
            self.tasks.push((task.pid, task.comm.clone()));
            let Some(base) = probe.reader.pointer(task.address, stack) else { continue };
            for offset in (0..bytes).step_by(4096) {
                let gpa = base.checked_add(offset).and_then(|virt| probe.reader.translate(virt));
                if let Some(gpa) = gpa {
                    self.claim(gpa.gfn(), Slot::Stack { task: owner });
                }
            }
        }
    }

    fn per_cpu(&mut self, probe: &Probe) {
        let ends = probe.symbol("__per_cpu_start").zip(probe.symbol("__per_cpu_end"));
        let Some((start, end)) = ends else { return };
        // After the image's own variables come those of modules and those asked for at run time.
        let unit = probe.half("pcpu_unit_size").map_or(0, u64::from);
        let bytes = end.saturating_sub(start).max(unit).min(PERCPU_BYTES_MAX);
        for (cpu, cpu_offset) in probe.cpu_offsets().to_vec() {
            for offset in (0..bytes).step_by(4096) {
                let virt = cpu_offset.wrapping_add(start).wrapping_add(offset);
                if let Some(gpa) = probe.reader.translate(virt)
                    && self
                        .index(gpa.gfn())
                        .is_some_and(|index| matches!(self.slots.get(index), Some(Slot::Reserved)))
                {
                    self.claim(gpa.gfn(), Slot::PerCpu { cpu, offset });
                }
            }
        }
    }

    fn module_memory(&mut self, probe: &Probe) {
        let modules = Modules::read(probe).unwrap_or_default();
        for (start, bytes, module) in &modules.areas {
            let Ok(module) = u32::try_from(*module) else { continue };
            for offset in (0..*bytes).step_by(4096) {
                let virt = start.checked_add(offset);
                let Some((virt, gpa)) = virt.and_then(|virt| Some((virt, probe.reader.translate(virt)?)))
                else {
                    // A hostile size ends where nothing is mapped.
                    break;
                };
                self.claim(gpa.gfn(), Slot::Module { module, virt });
            }
        }
        self.modules = modules.all.into_iter().map(|module| (module.name, module.address)).collect();
        self.sections = ModuleSections::read(probe);
    }

    /// The kernel's own page tables, and what they map page by page.
    fn kernel_tables(&mut self, probe: &Probe) {
        self.areas = vmalloc::areas(probe).unwrap_or_default();
        let space = probe.kernel.address_space();
        let descriptors = probe.word("vmemmap_base").zip(probe.types.size_of("page")).map(|(base, size)| {
            let end = self.layout.gfns().last().map_or(0, |last| last.0 + 1);
            base..base.saturating_add(end.saturating_mul(size))
        });
        let bytes = VMALLOC_BYTES[usize::from(space.levels == 5)];
        let mapped = probe.word("vmalloc_base").map(|base| base..base.saturating_add(bytes));
        let (mut tables, mut found) = (Vec::new(), Vec::new());
        let within = |range: &Option<std::ops::Range<u64>>, virt: u64| {
            range.as_ref().is_some_and(|range| range.contains(&virt))
        };
        let areas = &self.areas;
        let area_of = |virt: u64| {
            let at = areas.partition_point(|area| area.start <= virt).checked_sub(1)?;
            let area = areas.get(at).filter(|area| virt < area.end)?;
            Some((u32::try_from(at).ok()?, virt - area.start))
        };
        space.walk(
            probe.reader.pages(),
            (1 << 63, u64::MAX),
            &mut KERNEL_TABLES_MAX.clone(),
            &mut |mapping| {
                if within(&descriptors, mapping.virt) {
                    found.push((mapping, Slot::Descriptors));
                } else if let Some((area, offset)) =
                    area_of(mapping.virt).filter(|_| within(&mapped, mapping.virt) || mapping.bytes == PAGE)
                {
                    found.push((mapping, Slot::Vmalloc { area, offset }));
                }
            },
            &mut |gfn, virt, level| tables.push((gfn, virt, level)),
        );
        for (gfn, virt, level) in tables {
            self.claim(gfn, Slot::Table { pid: None, level, virt });
        }
        for (mapping, slot) in found {
            for number in 0..mapping.bytes / PAGE {
                let slot = match slot {
                    Slot::Vmalloc { area, offset } => Slot::Vmalloc { area, offset: offset + number * PAGE },
                    other => other,
                };
                let gfn = Gfn(mapping.gpa.gfn().0 + number);
                if self.index(gfn).is_none() {
                    // Device memory.
                    break;
                }
                self.claim(gfn, slot);
            }
        }
    }

    fn image(&mut self) {
        let image = *self.kernel.image();
        for offset in (0..image.bytes).step_by(4096) {
            // Freed parts (start-up code and data) are in use for other things: those are not reserved any more.
            let gfn = Gfn(image.gpa.gfn().0 + offset / PAGE);
            let place = self.index(gfn).and_then(|index| self.slots.get_mut(index));
            if let Some(place) = place
                && matches!(place, Slot::Unknown | Slot::Reserved)
            {
                *place = Slot::Kernel { virt: image.virt + offset };
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
