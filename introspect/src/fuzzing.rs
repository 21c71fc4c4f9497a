//! The decoders of a guest's memory, for the fuzzers in `fuzz/` and for the tests below. Each accepts any bytes, and
//! must neither panic nor use time or memory without bound.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
};

use retrovisor_guest::{
    Gfn, Gpa, MemoryError, MemoryLayout, MemoryView, PAGE_SIZE, Page, PageToken, VcpuRegisters, ZERO_PAGE,
    is_zero,
};

use crate::{
    AddressSpace, Introspector, Kernel, OwnerReader,
    btf::Types,
    image::{Image, ImageRange},
    kallsyms::Tables,
    linux::{
        areas::Areas, dispatch, log::SeenLines, modules::Modules, paths::Paths, stacks::Stacks, tasks::Tasks,
    },
    pages::Pages,
    probe::Probe,
    reader::Reader,
    vmcoreinfo::VmcoreInfo,
};

/// A decoder that accepts any bytes.
pub type Target = fn(&[u8]);

/// The decoders of byte strings, by the names of the fuzz targets.
pub const TARGETS: &[(&str, Target)] = &[
    ("kernel_symbols", kernel_symbols),
    ("kernel_types", kernel_types),
    ("kernel_note", kernel_note),
    ("page_tables", page_tables),
    ("syscall_dispatch", syscall_dispatch),
];

/// Initial inputs for some targets: name and bytes.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use crate::kallsyms::sample::{Layout, image};
    let layouts = [Layout::Before, Layout::After, Layout::OwnPlace, Layout::Packed];
    let mut seeds: Vec<_> =
        layouts.into_iter().map(|layout| ("kernel_symbols", image(layout).bytes)).collect();
    seeds.push(("kernel_types", crate::btf::sample::blob()));
    // A tree with a cycle, of either depth.
    for depth in [0, 1] {
        seeds.push(("page_tables", [vec![depth], [3, 0, 0, 0, 0, 0, 0, 0].repeat(512)].concat()));
    }
    seeds
}

const IMAGE_AT: u64 = crate::kallsyms::sample::VIRT;

/// kallsyms, in an image of these bytes: found by its structure, and at the places that the first twelve bytes give.
pub fn kernel_symbols(bytes: &[u8]) {
    let image = Image { virt: IMAGE_AT, bytes: bytes.to_vec() };
    let range = ImageRange { virt: IMAGE_AT, gpa: Gpa(0), bytes: bytes.len() as u64 };
    let place = |at| image.u32(at).and_then(|place| usize::try_from(place).ok());
    let reported = place(0).zip(place(4)).zip(place(8));
    let reported = reported.and_then(|((count, tokens), index)| Tables::check(count, tokens, index, &image));
    for tables in [reported, Tables::scan(&image)].into_iter().flatten() {
        if let Some((symbols, _)) = tables.read(&image, &range) {
            for address in [0, IMAGE_AT, IMAGE_AT + 4800, u64::MAX] {
                // The symbol of an address begins at or before that address.
                assert!(symbols.place(address).is_none_or(|place| place.offset <= address));
            }
            symbols.address("_text");
            assert!(symbols.within(0..IMAGE_AT).all(|(address, _)| address < IMAGE_AT));
        }
    }
}

/// BTF, and every lookup in it.
pub fn kernel_types(bytes: &[u8]) {
    let Some(types) = Types::parse(bytes) else { return };
    let last = u32::try_from(types.len()).unwrap_or(u32::MAX);
    for id in (0..=last.saturating_add(1)).take(512) {
        types.shape(id);
        types.resolved(id);
        types.leaves(id);
        types.value_name(id, 5);
    }
    for path in ["a", "b", "a.b", "name", "outer.name", "c[2]", ""] {
        if let Some(field) = types.field("outer", path) {
            types.array(field);
            types.element(field, 3);
        }
    }
    types.size_of("outer");
    types.enum_with("BLUE");
    types.enumerator("BLUE");
    types.variables();
}

/// A VMCOREINFO note in a frame.
pub fn kernel_note(bytes: &[u8]) {
    let mut page = ZERO_PAGE;
    let length = bytes.len().min(PAGE_SIZE);
    page[..length].copy_from_slice(&bytes[..length]);
    let Some(note) = VmcoreInfo::in_frame(&page) else { return };
    note.release();
    note.address_space();
    note.symbol("kallsyms_num_syms");
}

/// Page tables in a memory of these bytes; the first byte gives their depth.
pub fn page_tables(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let pages: Vec<Page> = bytes
        .chunks(PAGE_SIZE)
        .take(64)
        .map(|chunk| {
            let mut page = ZERO_PAGE;
            page[..chunk.len()].copy_from_slice(chunk);
            page
        })
        .collect();
    let Ok(layout) = MemoryLayout::flat((pages.len() * PAGE_SIZE) as u64) else { return };
    let view = Held { layout, pages: pages.iter().map(|page| Some(Box::new(*page))).collect() };
    let pages = Pages::new(&view);
    let space = AddressSpace { root: Gpa(0), levels: 4 + (first & 1) };
    let mut budget = 256;
    let mut mapped = Vec::new();
    let whole = space.walk(
        &pages,
        (0, u64::MAX),
        &mut budget,
        &mut |mapping| {
            if mapped.len() < 4096 {
                mapped.push(mapping);
            }
        },
        &mut |_, _, level| assert!((1..=5).contains(&level)),
    );
    assert!(whole || budget == 0);
    for mapping in mapped {
        let found = space.translate(&pages, mapping.virt);
        assert_eq!(found, Some(mapping.gpa), "{mapping:?}");
    }
    ImageRange::find(&pages, space);
}

/// The code of `x64_sys_call`, after the number of a call (4 bytes).
pub fn syscall_dispatch(bytes: &[u8]) {
    let Some((number, code)) = bytes.split_first_chunk() else { return };
    if let Some(exit) = dispatch::follow(code, IMAGE_AT, u32::from_le_bytes(*number)) {
        assert!(exit.at + exit.length <= code.len());
    }
}

/// A memory of which only the frames that are not zero are stored.
struct Held {
    layout: MemoryLayout,
    pages: Vec<Option<Box<Page>>>,
}

impl Held {
    fn read(view: &dyn MemoryView) -> Self {
        let read = |gfn| {
            let mut page = ZERO_PAGE;
            let whole = view.read_page(gfn, &mut page).is_ok() && !is_zero(&page);
            whole.then(|| Box::new(page))
        };
        Self { layout: view.layout().clone(), pages: view.layout().gfns().map(read).collect() }
    }
}

impl MemoryView for Held {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let index = self.layout.index(gfn).and_then(|index| usize::try_from(index).ok());
        let page = index.and_then(|index| self.pages.get(index));
        let page = page.ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        *into = page.as_ref().map_or(ZERO_PAGE, |page| **page);
        Ok(())
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        Some(PageToken(gfn.0))
    }
}

/// What is read of a damaged guest, by the names of the fuzz targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// Everything, as for a checkpoint that follows another one, with the owner of each frame.
    Everything,
    /// The printk log.
    Log,
    /// Tasks from the lists and the pid tree, and the functions in which they sleep (unwind table).
    Tasks,
    /// The areas of each process: maple trees or lists.
    Areas,
}

/// A healthy guest in which a fuzzer changes words.
pub struct Guest {
    healthy: Held,
    registers: Vec<VcpuRegisters>,
    kernel: Kernel,
    introspector: RefCell<Introspector>,
    /// The frames that each question reads in the healthy guest: only those are changed.
    read: RefCell<BTreeMap<Question, Vec<Gfn>>>,
    asked: Cell<u64>,
}

/// Bytes of one change in a fuzzer's input: index of the frame among those read, offset, kind of change, word.
pub const CHANGE_BYTES: usize = 13;
const CHANGES_MAX: usize = 64;

impl Guest {
    /// Builds it from the memory of a healthy guest; `None` when no kernel is found in it.
    #[must_use]
    pub fn new(view: &dyn MemoryView, registers: &[VcpuRegisters]) -> Option<Self> {
        let healthy = Held::read(view);
        let kernel = Kernel::find(&healthy, registers).ok()?;
        let introspector = RefCell::default();
        let (read, asked) = (RefCell::default(), Cell::new(0));
        Some(Self { healthy, registers: registers.to_vec(), kernel, introspector, read, asked })
    }

    /// Makes the changes that the bytes encode, and reads the damaged guest.
    pub fn ask(&self, question: Question, bytes: &[u8]) {
        let known = self.read.borrow().contains_key(&question);
        if !known {
            let healthy =
                Changed { guest: self, changes: BTreeMap::new(), read: RefCell::default(), salt: 0 };
            self.answer(question, &healthy);
            let read = healthy.read.take().into_iter().collect();
            self.read.borrow_mut().insert(question, read);
        }
        self.asked.set(self.asked.get() + 1);
        let changes = self.changes(&self.read.borrow()[&question], bytes);
        let salt = self.asked.get();
        self.answer(question, &Changed { guest: self, changes, read: RefCell::default(), salt });
        if question == Question::Everything {
            // The healthy guest must still have no violation after the introspector has read damaged memory.
            let mut introspector = self.introspector.borrow_mut();
            introspector.forget_last();
            let observation = introspector.observe(&self.healthy, &self.registers);
            introspector.forget_last();
            assert_eq!(observation.linux.map(|linux| linux.integrity), Some(Vec::new()));
        }
    }

    fn changes(&self, read: &[Gfn], bytes: &[u8]) -> BTreeMap<Gfn, Page> {
        let mut pages: BTreeMap<Gfn, Page> = BTreeMap::new();
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        for change in bytes.as_chunks::<CHANGE_BYTES>().0.iter().take(CHANGES_MAX) {
            let frame = usize::try_from(number(&change[..2])).unwrap_or(0);
            let at = usize::try_from(number(&change[2..4])).unwrap_or(0) % (PAGE_SIZE - 7);
            let (way, word) = (change[4], number(&change[5..]));
            let Some(gfn) = read.get(frame % read.len().max(1)) else { return pages };
            let mut other = ZERO_PAGE;
            let from = read[usize::try_from(word).unwrap_or(usize::MAX) % read.len()];
            let _ = self.healthy.read_page(from, &mut other);
            let page = pages.entry(*gfn).or_insert_with(|| {
                let mut page = ZERO_PAGE;
                let _ = self.healthy.read_page(*gfn, &mut page);
                page
            });
            let at = if way & 0x80 == 0 { at & !7 } else { at };
            let old = number(&page[at..at + 8]);
            let (length, new) = match way & 7 {
                0 => (1, word),
                1 => (2, word),
                2 => (4, word),
                3 => (8, word),
                4 => (8, old.wrapping_add(word)),
                5 => (8, old ^ 1 << (word % 64)),
                // A word of another structure: often a valid pointer to the wrong object.
                6 => (8, number(&other[at..at + 8])),
                _ => {
                    *page = other;
                    continue;
                }
            };
            page[at..at + length].copy_from_slice(&new.to_le_bytes()[..length]);
        }
        pages
    }

    fn answer(&self, question: Question, view: &Changed) {
        if question == Question::Everything {
            let mut introspector = self.introspector.borrow_mut();
            let observation = introspector.observe(view, &self.registers);
            assert!(observation.linux.is_some() || observation.reason.is_some());
            assert!(!observation.tables().is_empty());
            if let Some(kernel) = introspector.kernel() {
                let map = OwnerReader::new().read(&kernel, view, &observation);
                for gfn in view.layout().gfns().step_by(97) {
                    assert!(!map.explain(gfn).kind().is_empty());
                }
            }
            return;
        }
        let pages = Pages::new(view);
        let reader = Reader::new(&pages, self.kernel.address_space());
        let Some(probe) = Probe::new(&self.kernel, &reader) else { return };
        match question {
            Question::Everything => {}
            Question::Log => {
                SeenLines::default().read_new(&probe);
            }
            Question::Tasks => {
                let Some(mut tasks) = Tasks::read(&probe) else { return };
                let modules = Modules::read(&probe).unwrap_or_default();
                if let Some(stacks) = Stacks::new(&probe, &modules, &mut None) {
                    stacks.complete(&mut tasks.all, &crate::linux::module_symbols::ModuleSymbols::default());
                }
            }
            Question::Areas => {
                let (Some(areas), Some(tasks)) = (Areas::new(&probe), Tasks::read(&probe)) else { return };
                let (paths, memory) = (Paths::new(&probe), probe.field("task_struct", "mm"));
                for task in tasks.all {
                    let memory = memory.and_then(|memory| reader.pointer(task.address, memory));
                    if let Some(memory) = memory.filter(|memory| *memory != 0) {
                        areas.read(&probe, paths.as_ref(), memory);
                    }
                }
            }
        }
    }
}

/// The guest's memory with some frames changed.
struct Changed<'g> {
    guest: &'g Guest,
    changes: BTreeMap<Gfn, Page>,
    read: RefCell<BTreeSet<Gfn>>,
    /// Makes the page tokens of changed contents differ from one question to the next.
    salt: u64,
}

impl MemoryView for Changed<'_> {
    fn layout(&self) -> &MemoryLayout {
        &self.guest.healthy.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        if self.salt == 0 {
            self.read.borrow_mut().insert(gfn);
        }
        match self.changes.get(&gfn) {
            Some(page) => {
                *into = *page;
                Ok(())
            }
            None => self.guest.healthy.read_page(gfn, into),
        }
    }
    fn token(&self, gfn: Gfn) -> Option<PageToken> {
        match self.changes.get(&gfn) {
            Some(_) => Some(PageToken(gfn.0 | self.salt << 40)),
            None => self.guest.healthy.token(gfn),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn changed_seeds_are_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..9)) {
            for (name, mut bytes) in seeds() {
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
                target(&bytes);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }

        #[test]
        fn tables_of_few_frames_are_walked(entries in prop::collection::vec((0_usize..512 * 8, 0_u64..8, prop::sample::select(vec![3_u64, 0x83, 0x1003])), 1..60)) {
            let mut bytes = vec![0; 1 + 8 * PAGE_SIZE];
            bytes[0] = u8::try_from(entries.len() & 1).unwrap();
            for (slot, frame, flags) in entries {
                bytes[1 + slot * 8..][..8].copy_from_slice(&(frame << 12 | flags).to_le_bytes());
            }
            page_tables(&bytes);
        }

        #[test]
        fn notes_are_survived(lines in prop::collection::vec("(OSRELEASE=|SYMBOL\\(swapper_pg_dir\\)=|NUMBER\\(phys_base\\)=)[0-9a-f-]{0,17}", 1..9)) {
            kernel_note(format!("OSRELEASE=6\nSYMBOL(x)=1\n{}\n", lines.join("\n")).as_bytes());
        }
    }
}
