//! Fills a map of owners from the kernel's own structures.

use std::cell::RefCell;
use std::num::NonZero;

use retrovisor_guest::{Gfn, MemoryView};

use super::{
    map::{OwnerMap, Slot},
    mapped::Mapped,
    referrers::Referrers,
};
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
        slabs::SlabCaches,
        vmalloc,
    },
    pages::{FrameCache, Pages},
    probe::Probe,
    reader::Reader,
};

/// Maps several memories of one guest, one after the other, and re-reads only what changed between them: frames with an
/// unchanged page token are not read again.
pub struct OwnerReader {
    cache: RefCell<FrameCache>,
    descriptors: Descriptors,
}

/// Frames that are kept from one memory to the next: 64 MiB.
const CACHED_FRAMES: NonZero<usize> = NonZero::new(16_384).unwrap();

const KERNEL_TABLES_MAX: u32 = 1 << 18;
const FILES_MAX: usize = 1 << 20;
const STACK_BYTES_MAX: u64 = 64 << 10;
const PERCPU_BYTES_MAX: u64 = 4 << 20;
/// Size of the vmalloc space with 4 and with 5 levels.
const VMALLOC_BYTES: [u64; 2] = [32 << 40, 12_800 << 40];
const PAGE: u64 = 4096;

impl OwnerReader {
    /// A reader without cached frames.
    #[must_use]
    pub fn new() -> Self {
        Self { cache: RefCell::new(FrameCache::new(CACHED_FRAMES)), descriptors: Descriptors::default() }
    }

    /// Maps every frame of a memory. The observation must be of the same memory; it names the tasks.
    pub fn read(&mut self, kernel: &Kernel, view: &dyn MemoryView, observation: &Observation) -> OwnerMap {
        let pages = Pages::with_cache(view, &self.cache);
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
            parts: Vec::new(),
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

    /// Assigns a frame to an owner that the kernel's own structures name, unless its descriptor says otherwise.
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

    /// Assigns the frames whose descriptors record an owner.
    fn uses(&mut self, probe: &Probe, descriptors: &Descriptors, paths: Option<&Paths>) {
        self.caches = SlabCaches::new(probe);
        let mut files = IntegerMap::default();
        let host = probe.field("address_space", "host");
        let mut free_until = 0;
        for (index, gfn) in self.layout.gfns().enumerate().collect::<Vec<_>>() {
            let (mut used, mut part) = (descriptors.at(index), 0);
            if let Use::Tail { head } = used {
                // The first descriptor of a block is valid for all of it.
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
                Use::Plain | Use::Tail { .. } => {
                    let head = self.index(Gfn(gfn.0.saturating_sub(part))).filter(|_| part > 0);
                    let numbers =
                        head.and_then(|head| Some((u32::try_from(index).ok()?, u32::try_from(head).ok()?)));
                    self.parts.extend(numbers);
                    Slot::Allocated
                }
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

    /// The number of the file with this `address_space`, if there is one.
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
        // The image's own variables are followed by those of modules and those allocated at run time.
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
                    // Nothing is mapped beyond; this also ends the loop for a forged size.
                    break;
                };
                self.claim(gpa.gfn(), Slot::Module { module, virt });
            }
        }
        self.modules = modules.all.into_iter().map(|module| (module.name, module.address)).collect();
        self.sections = ModuleSections::read(probe);
    }

    /// Assigns the kernel's own page tables, and what they map page by page.
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
            // Freed parts (start-up code and data) are used for other things and no longer reserved.
            let gfn = Gfn(image.gpa.gfn().0 + offset / PAGE);
            let place = self.index(gfn).and_then(|index| self.slots.get_mut(index));
            if let Some(place) = place
                && matches!(place, Slot::Unknown | Slot::Reserved)
            {
                *place = Slot::Kernel { virt: image.virt + offset };
            }
        }
    }
}
