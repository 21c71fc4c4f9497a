use std::{collections::BTreeMap, ops::Range};

use retrovisor_guest::{Gfn, Gpa, PAGE_SIZE, PageToken, ZERO_PAGE};

use super::patching::{Lawful, LawfulSites};
use crate::{pages::ReadAhead, probe::Probe};

/// The reference for memory that must not change: code and constant data of the kernel and of each module, from their
/// first observation.
#[derive(Default)]
pub(crate) struct TextReference {
    kernel: Vec<Region>,
    /// By address of the `struct module`.
    modules: BTreeMap<u64, ModuleText>,
}

/// The kind of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Text,
    Rodata,
}

/// A range of memory that must not change.
struct Region {
    part: Part,
    range: Range<u64>,
    frames: Vec<Frame>,
    sites: LawfulSites,
}

/// The reference of a module, from its first observation in state `live`.
struct ModuleText {
    name: String,
    /// The number of its entry in sysfs, which is different each time the module is loaded.
    instance: Option<u64>,
    /// Observations since the last one that contained it.
    unseen: u32,
    regions: Vec<Region>,
}

struct Frame {
    /// `None` when it was not mapped.
    gfn: Option<Gfn>,
    token: Option<PageToken>,
    /// `None` when it could not be read at the first observation: there is nothing to compare with.
    bytes: Option<Box<[u8; PAGE_SIZE]>>,
}

/// The differences of code and constant data from the reference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TextChanges {
    /// Frames of the kernel's code that differ, whether or not a table explains it.
    pub(crate) frames: u64,
    /// Changes that no table of the kernel explains; adjacent ones are joined.
    pub(crate) unexplained: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) part: Part,
    pub(crate) virt: u64,
    pub(crate) before: Vec<u8>,
    pub(crate) now: Vec<u8>,
}

/// Bound on the runs of changed bytes that are reported; further ones count only as changed frames.
const CHANGES_MAX: usize = 256;
/// Changed bytes at most this far apart belong to one run.
const GAP: usize = 4;
/// Bound on the code and constant data of one module …
const MODULE_BYTES_MAX: u64 = 16 << 20;
/// … and of all modules together, which limits the host's memory.
const MODULES_BYTES_MAX: u64 = 128 << 20;
/// Observations for which a missing module is remembered: it may be hidden, or a read may have been torn.
const UNSEEN_MAX: u32 = 64;
const RODATA_BYTES_MAX: u64 = 64 << 20;

impl TextReference {
    /// The kernel's own regions in this memory.
    pub(crate) fn take(probe: &Probe) -> Self {
        let text = probe.kernel.text();
        let sites = LawfulSites::read(probe);
        let mut kernel = Vec::new();
        let gfn = |virt: u64| probe.kernel.image_gpa(virt).map(Gpa::gfn);
        if !text.is_empty() {
            kernel.push(Region::take(probe, Part::Text, text, sites, gfn));
        }
        let rodata = probe.symbol("__start_rodata").zip(probe.symbol("__end_rodata"));
        let rodata = rodata.filter(|(start, end)| start < end && end - start <= RODATA_BYTES_MAX);
        if let Some((start, end)) = rodata {
            kernel.push(Region::take(probe, Part::Rodata, start..end, LawfulSites::default(), gfn));
        }
        Self { kernel, modules: BTreeMap::new() }
    }

    /// Number of frames of the kernel's code.
    pub(crate) fn frame_count(&self) -> u64 {
        let text = self.kernel.iter().filter(|region| region.part == Part::Text);
        text.map(|region| region.frames.len() as u64).sum()
    }

    /// Compares this memory with the reference. Frames whose page token is the reference's are not read. New modules
    /// become part of the reference.
    pub(crate) fn compare(&mut self, lawful: &Lawful) -> TextChanges {
        let probe = lawful.code.probe;
        let mut changes = TextChanges::default();
        for region in &self.kernel {
            let differing =
                region.compare(lawful, &mut changes, &|virt| probe.kernel.image_gpa(virt).map(Gpa::gfn));
            changes.frames += if region.part == Part::Text { differing } else { 0 };
        }
        self.mapped_elsewhere(probe, &mut changes);
        self.compare_modules(lawful, &mut changes);
        changes
    }

    /// The kernel's page tables must still lead to the frames of the reference.
    fn mapped_elsewhere(&self, probe: &Probe, changes: &mut TextChanges) {
        const TABLES_MAX: u32 = 1 << 14;
        for region in &self.kernel {
            let (mut space_left, mut wrong) = (TABLES_MAX, None);
            probe.kernel.address_space().walk(
                probe.reader.pages(),
                (region.range.start, region.range.end - 1),
                &mut space_left,
                &mut |mapping| {
                    let virt = mapping.virt.max(region.range.start);
                    let found = mapping.gpa.checked_add(virt - mapping.virt);
                    if found != probe.kernel.image_gpa(virt) && wrong.is_none() {
                        wrong = Some((virt, found.map_or(0, |gpa| gpa.0)));
                    }
                },
                &mut |_, _, _| (),
            );
            if let Some((virt, found)) = wrong {
                let expected = probe.kernel.image_gpa(virt).map_or(0, |gpa| gpa.0);
                changes.unexplained.push(Change {
                    part: region.part,
                    virt,
                    before: expected.to_be_bytes().to_vec(),
                    now: found.to_be_bytes().to_vec(),
                });
            }
        }
    }

    fn compare_modules(&mut self, lawful: &Lawful, changes: &mut TextChanges) {
        let (code, probe) = (lawful.code, lawful.code.probe);
        let gfn = |virt: u64| probe.reader.translate(virt).map(Gpa::gfn);
        self.modules.retain(|_, known| {
            known.unseen += 1;
            known.unseen <= UNSEEN_MAX
        });
        for (index, module) in code.modules.all.iter().enumerate() {
            let Some(structure) = code.modules.structures.get(index).copied() else { continue };
            let instance = instance_of(probe, structure);
            if let Some(known) = self.modules.get_mut(&structure).filter(|known| {
                // A module that removed itself from sysfs is still the same.
                instance.map_or(known.name == module.name, |instance| known.instance == Some(instance))
            }) {
                known.unseen = 0;
                if module.state == "live" {
                    for region in &known.regions {
                        region.compare(lawful, changes, &gfn);
                    }
                }
                continue;
            }
            let held_bytes: u64 = self.modules.values().map(ModuleText::bytes).sum();
            if module.state == "live" && held_bytes < MODULES_BYTES_MAX {
                let region = |(part, range): (Part, Range<u64>)| {
                    let sites = match part {
                        Part::Text => LawfulSites::of_module(code, index),
                        Part::Rodata => LawfulSites::default(),
                    };
                    Region::take(probe, part, range, sites, gfn)
                };
                let regions = module_ranges(probe, structure).into_iter().map(region).collect();
                let name = module.name.clone();
                self.modules.insert(structure, ModuleText { name, instance, regions, unseen: 0 });
            }
        }
    }
}

impl ModuleText {
    fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.range.end - region.range.start).sum()
    }
}

impl Region {
    fn take(
        probe: &Probe,
        part: Part,
        range: Range<u64>,
        sites: LawfulSites,
        gfn: impl Fn(u64) -> Option<Gfn>,
    ) -> Self {
        let pages = probe.reader.pages();
        let mut page = ZERO_PAGE;
        let frames = page_starts(&range).map(|virt| {
            let gfn = gfn(virt);
            let bytes = gfn.and_then(|gfn| pages.read_into(gfn, &mut page)).map(|()| Box::new(page));
            Frame { gfn, token: gfn.and_then(|gfn| pages.view().token(gfn)), bytes }
        });
        let frames = frames.collect();
        Self { part, range, frames, sites }
    }

    /// Adds the changes that no table explains. Returns how many frames differ.
    fn compare(
        &self,
        lawful: &Lawful,
        changes: &mut TextChanges,
        gfn_of: &dyn Fn(u64) -> Option<Gfn>,
    ) -> u64 {
        let pages = lawful.code.probe.reader.pages();
        let (mut differing, mut ahead) = (0, ReadAhead::default());
        for (frame, start) in self.frames.iter().zip(page_starts(&self.range)) {
            let gfn = gfn_of(start);
            let token = gfn.and_then(|gfn| pages.view().token(gfn));
            let same = token.is_some() && frame.token == token;
            let Some(before) = frame.bytes.as_deref().filter(|_| !same) else { continue };
            let Some(gfn) = gfn.or(frame.gfn) else { continue };
            // Without page tokens all frames are read, many at once.
            let end = self.range.end.saturating_sub(start).div_ceil(PAGE_SIZE as u64);
            let run = if token.is_none() { usize::try_from(end).unwrap_or(1) } else { 1 };
            let Some(page) = ahead.frame(pages, gfn, run).filter(|page| *page != before) else { continue };
            differing += 1;
            for run in runs(before, page) {
                let virt = start + run.start as u64;
                let (before, now) = (&before[run.clone()], &page[run]);
                let reported = self.range.contains(&virt) && changes.unexplained.len() < CHANGES_MAX;
                if reported && !self.sites.explain(lawful, virt, now) {
                    let (before, now) = (before.to_vec(), now.to_vec());
                    changes.unexplained.push(Change { part: self.part, virt, before, now });
                }
            }
        }
        differing
    }
}

fn page_starts(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    (range.start & !(PAGE_SIZE as u64 - 1)..range.end).step_by(PAGE_SIZE)
}

/// The number of a module's entry in sysfs.
fn instance_of(probe: &Probe, structure: u64) -> Option<u64> {
    let entry =
        probe.reader.pointer(structure, probe.field("module", "mkobj.kobj.sd")?).filter(|at| *at != 0)?;
    probe.reader.number(entry, probe.field("kernfs_node", "id")?)
}

/// The code and constant data of a module.
fn module_ranges(probe: &Probe, structure: u64) -> Vec<(Part, Range<u64>)> {
    let number = |path: &str| probe.reader.number(structure, probe.field("module", path)?);
    let mut ranges = Vec::new();
    if let Some(memory) = probe.field("module", "mem") {
        for (part, name) in [(Part::Text, "MOD_TEXT"), (Part::Rodata, "MOD_RODATA")] {
            let index = probe.types.enumerator(name).and_then(|index| u64::try_from(index).ok());
            let element = index.and_then(|index| probe.types.element(memory, index));
            let inner = |path: &str| {
                let at = structure.checked_add(element?.offset_bytes)?;
                probe.reader.number(at, probe.field("module_memory", path)?)
            };
            ranges.extend(inner("base").zip(inner("size")).map(|(base, size)| (part, base, size)));
        }
    } else if let (Some(base), Some(text), Some(constant)) =
        (number("core_layout.base"), number("core_layout.text_size"), number("core_layout.ro_size"))
    {
        ranges.push((Part::Text, base, text));
        ranges.push((Part::Rodata, base.wrapping_add(text), constant.saturating_sub(text)));
    }
    ranges
        .into_iter()
        .filter(|(_, base, size)| {
            *size != 0 && *size <= MODULE_BYTES_MAX && base.checked_add(*size).is_some()
        })
        .map(|(part, base, size)| (part, base..base + size))
        .collect()
}

/// The ranges in which two pages differ, near ones joined.
fn runs(before: &[u8; PAGE_SIZE], now: &[u8; PAGE_SIZE]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for at in (0..PAGE_SIZE).filter(|at| before[*at] != now[*at]) {
        match runs.last_mut() {
            Some(run) if at - run.end < GAP => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_changes_are_one_run() {
        let (before, mut now) = (ZERO_PAGE, ZERO_PAGE);
        for at in [0, 3, 100, 4095] {
            now[at] = 1;
        }
        assert_eq!(runs(&before, &now), [0..4, 100..101, 4095..4096]);
    }

    #[test]
    fn a_range_is_of_whole_pages() {
        assert_eq!(page_starts(&(4100..8193)).collect::<Vec<_>>(), [4096, 8192]);
    }
}
