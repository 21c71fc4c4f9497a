use std::sync::Arc;

use super::{maple, paths::Paths};
use crate::{btf::Field, probe::Probe};

/// One virtual memory area of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) start: u64,
    /// First address past it.
    pub(crate) end: u64,
    /// A file's path, `[heap]`, `[stack]`, `[vdso]`; `None` for anonymous memory.
    pub(crate) name: Option<Arc<str>>,
    /// For a file: the offset of `start` in it, in bytes.
    pub(crate) file_offset: u64,
}

/// The fields of areas in this kernel.
pub(crate) struct Areas {
    start: Field,
    end: Field,
    memory: Field,
    file: Field,
    page_offset: Field,
    operations: Option<Field>,
    private: Option<Field>,
    special_name: Option<Field>,
    /// In kernels up to 6.0 a list; later a maple tree.
    list: Option<(Field, Field)>,
    tree: Option<Field>,
    heap: Option<(Field, Field)>,
    stack: Option<Field>,
    vdso: Option<Field>,
}

/// The default `max_map_count` is 65,530.
const AREAS_MAX: usize = 1 << 17;

impl Areas {
    pub(crate) fn new(probe: &Probe) -> Option<Self> {
        let area = |path: &str| probe.field("vm_area_struct", path);
        let memory = |path: &str| probe.field("mm_struct", path);
        Some(Self {
            start: area("vm_start")?,
            end: area("vm_end")?,
            memory: area("vm_mm")?,
            file: area("vm_file")?,
            page_offset: area("vm_pgoff")?,
            operations: area("vm_ops"),
            private: area("vm_private_data"),
            special_name: probe.field("vm_special_mapping", "name"),
            list: memory("mmap").zip(area("vm_next")),
            tree: memory("mm_mt.ma_root"),
            heap: memory("start_brk").zip(memory("brk")),
            stack: memory("start_stack"),
            vdso: memory("context.vdso"),
        })
    }

    /// The areas of an `mm_struct`, ascending. When the structure is inconsistent, the rest is left out and the probe
    /// is marked torn.
    pub(crate) fn read(&self, probe: &Probe, paths: Option<&Paths>, memory: u64) -> Vec<Area> {
        let mut areas: Vec<Area> = self
            .addresses(probe, memory)
            .into_iter()
            .filter_map(|area| self.area(probe, paths, memory, area))
            .collect();
        areas.sort_unstable_by_key(|area| area.start);
        areas
    }

    fn addresses(&self, probe: &Probe, memory: u64) -> Vec<u64> {
        if let Some(root) = self.tree {
            let Some(root) = probe.reader.pointer(memory, root) else { return Vec::new() };
            let entries = maple::entries(probe, root, AREAS_MAX);
            if !entries.whole {
                probe.mark_torn();
            }
            return entries.pointers;
        }
        let Some((first, next)) = self.list else { return Vec::new() };
        let (mut areas, mut last) = (Vec::new(), 0);
        let mut at = probe.reader.pointer(memory, first);
        while let Some(area) = at.filter(|area| *area != 0) {
            // Areas ascend; one that does not is part of a cycle or forged.
            let start = probe.reader.pointer(area, self.start);
            if areas.len() == AREAS_MAX || start.is_none_or(|start| !areas.is_empty() && start <= last) {
                probe.mark_torn();
                break;
            }
            last = start.unwrap_or(0);
            areas.push(area);
            at = probe.reader.pointer(area, next);
        }
        areas
    }

    fn area(&self, probe: &Probe, paths: Option<&Paths>, memory: u64, at: u64) -> Option<Area> {
        let reader = probe.reader;
        let (start, end) = (reader.pointer(at, self.start)?, reader.pointer(at, self.end)?);
        if start >= end || end >> 56 != 0 || reader.pointer(at, self.memory)? != memory {
            probe.mark_torn();
            return None;
        }
        let file = reader.pointer(at, self.file).filter(|file| *file != 0);
        let name = match file {
            Some(file) => paths.and_then(|paths| paths.of_file(probe, file)),
            None => self.special(probe, memory, at, (start, end)),
        };
        let page_offset = if file.is_some() { reader.number(at, self.page_offset)? } else { 0 };
        Some(Area { start, end, name, file_offset: page_offset.wrapping_mul(4096) })
    }

    /// The name of an area without a file, as in /proc/PID/maps.
    fn special(&self, probe: &Probe, memory: u64, at: u64, (start, end): (u64, u64)) -> Option<Arc<str>> {
        let reader = probe.reader;
        let of_memory = |field: Field| reader.pointer(memory, field);
        let operations = self.operations.and_then(|field| reader.pointer(at, field)).filter(|at| *at != 0);
        if operations.is_some() && operations == probe.symbol("special_mapping_vmops") {
            let special = reader.pointer(at, self.private?)?;
            return Some(reader.string(reader.pointer(special, self.special_name?)?, 32)?.into());
        }
        if self.vdso.and_then(of_memory) == Some(start) {
            return Some("[vdso]".into());
        }
        if let Some((first, last)) = self.heap.and_then(|(first, last)| of_memory(first).zip(of_memory(last)))
            && start <= last
            && end >= first
        {
            return Some("[heap]".into());
        }
        let stack = self.stack.and_then(of_memory)?;
        (start <= stack && end >= stack).then(|| "[stack]".into())
    }
}
