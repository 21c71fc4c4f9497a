//! The memory of the processes: the frames that each maps, and its page tables.

use std::sync::Arc;

use retrovisor_guest::{Gfn, MemoryLayout};

use super::Mapper;
use crate::{
    Observation,
    hash::IntegerSet,
    linux::{
        areas::{Area, Areas},
        paths::Paths,
    },
    paging::AddressSpace,
    probe::Probe,
};

/// Bound on the page tables that are walked, over all processes: those of 512 GiB of mappings.
const TABLES_MAX: u32 = 1 << 18;
/// Bound on the mappings that are kept, over all processes: 96 MiB.
const MAPPINGS_MAX: usize = 1 << 22;
const LOWER_HALF_END: u64 = 0x00ff_ffff_ffff_ffff;
/// A mapping is kept up to this size, that of the largest huge page; a forged size is cut.
const MAPPING_BYTES_MAX: u64 = 1 << 30;

/// Every mapping of every process.
#[derive(Default)]
pub(super) struct Mapped {
    spaces: Vec<Space>,
    /// Ascending: index of the frame, space, virtual address.
    mappings: Vec<(u32, u32, u64)>,
}

/// One address space.
struct Space {
    pid: i32,
    comm: String,
    areas: Vec<Area>,
}

/// A frame that holds a page table: its process, level, and the first address that it covers.
pub(super) struct Table {
    pub(super) gfn: Gfn,
    pub(super) pid: i32,
    pub(super) level: u8,
    pub(super) virt: u64,
}

impl Mapped {
    /// Walks the page tables of every process in the observation. Also returns the frames of the tables.
    pub(super) fn read(
        probe: &Probe,
        layout: &MemoryLayout,
        observation: &Observation,
        paths: Option<&Paths>,
    ) -> (Self, Vec<Table>) {
        let (mut mapped, mut tables) = (Self::default(), Vec::new());
        let fields = probe.field("task_struct", "mm").zip(probe.field("mm_struct", "pgd"));
        let Some((memory, pgd)) = fields else { return (mapped, tables) };
        let areas = Areas::new(probe);
        let mut budget = TABLES_MAX;
        let mut seen = IntegerSet::default();
        for task in observation.linux.iter().flat_map(|linux| &linux.tasks) {
            let Some(memory) = probe.reader.pointer(task.address, memory).filter(|memory| *memory != 0)
            else {
                continue;
            };
            let top = probe.reader.pointer(memory, pgd).and_then(|top| probe.reader.translate(top));
            let Some(root) = top.filter(|_| seen.insert(memory)) else { continue };
            let Ok(space) = u32::try_from(mapped.spaces.len()) else { break };
            let areas = areas.as_ref().map(|areas| areas.read(probe, paths, memory)).unwrap_or_default();
            mapped.spaces.push(Space { pid: task.tgid, comm: task.comm.clone(), areas });
            let mappings = &mut mapped.mappings;
            AddressSpace { root, ..probe.kernel.address_space() }.walk(
                probe.reader.pages(),
                (0, LOWER_HALF_END),
                &mut budget,
                &mut |mapping| {
                    for offset in (0..mapping.bytes.min(MAPPING_BYTES_MAX)).step_by(4096) {
                        let index = layout.index(Gfn(mapping.gpa.gfn().0 + (offset >> 12)));
                        let Some(index) = index.and_then(|index| u32::try_from(index).ok()) else { break };
                        if mappings.len() >= MAPPINGS_MAX {
                            return;
                        }
                        mappings.push((index, space, mapping.virt + offset));
                    }
                },
                &mut |gfn, virt, level| tables.push(Table { gfn, pid: task.tgid, level, virt }),
            );
            if let Some(gfn) = user_half(probe, root.gfn()) {
                let level = probe.kernel.address_space().levels;
                tables.push(Table { gfn, pid: task.tgid, level, virt: 0 });
            }
        }
        mapped.mappings.sort_unstable();
        (mapped, tables)
    }

    /// How many places map a frame.
    pub(super) fn count(&self, index: usize) -> usize {
        self.of(index).len()
    }

    /// The places that map a frame, at most `max`.
    pub(super) fn mappers(&self, index: usize, max: usize) -> impl Iterator<Item = Mapper> + '_ {
        let all = self.of(index);
        let others = u32::try_from(all.len().saturating_sub(1)).unwrap_or(u32::MAX);
        all.iter().take(max).filter_map(move |(_, space, virt)| {
            let space = self.spaces.get(*space as usize)?;
            let area = space.area(*virt).and_then(|area| area.name.as_ref().map(Arc::clone));
            Some(Mapper { pid: space.pid, comm: space.comm.clone(), virt: *virt, area, others })
        })
    }

    fn of(&self, index: usize) -> &[(u32, u32, u64)] {
        let Ok(index) = u32::try_from(index) else { return &[] };
        let first = self.mappings.partition_point(|(at, ..)| *at < index);
        let count = self.mappings[first..].iter().take_while(|(at, ..)| *at == index).count();
        &self.mappings[first..first + count]
    }
}

/// Under page-table isolation, the frame after a top table is the one for user mode: its lower half leads to the same
/// tables.
fn user_half(probe: &Probe, top: Gfn) -> Option<Gfn> {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let other = Gfn(top.0 + 1);
    let pages = probe.reader.pages();
    let (kernel, user) = (pages.frame(top)?, pages.frame(other)?);
    let lower = |page: &[u8]| -> Vec<u64> {
        let entries = page.as_chunks::<8>().0.iter().take(256);
        entries.map(|entry| u64::from_le_bytes(*entry) & ADDRESS).collect()
    };
    let leads = lower(kernel.as_slice());
    (top.0.is_multiple_of(2) && leads.iter().any(|entry| *entry != 0) && leads == lower(user.as_slice()))
        .then_some(other)
}

impl Space {
    fn area(&self, virt: u64) -> Option<&Area> {
        let end = self.areas.partition_point(|area| area.start <= virt);
        self.areas.get(end.checked_sub(1)?).filter(|area| virt < area.end)
    }
}
