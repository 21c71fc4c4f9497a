use retrovisor_guest::{Gpa, MemoryView, PAGE_SIZE, ZERO_PAGE};

use crate::{image::KERNEL_MAP, pages::Pages, paging::AddressSpace};

/// VMCOREINFO: the kernel's description of itself for crash dumps, as text in a page of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmcoreInfo {
    text: String,
}

impl VmcoreInfo {
    /// Size of the note's header before the text, in the copy for ELF readers.
    const NOTE_HEADER: usize = 24;

    /// The text in a frame, if the frame contains one.
    pub(crate) fn in_frame(page: &[u8; PAGE_SIZE]) -> Option<Self> {
        let start = [0, Self::NOTE_HEADER].into_iter().find(|at| page[*at..].starts_with(b"OSRELEASE="))?;
        let end = page[start..].iter().position(|byte| *byte == 0).map_or(PAGE_SIZE, |length| start + length);
        let text = std::str::from_utf8(&page[start..end]).ok()?;
        text.contains("\nSYMBOL(").then(|| Self { text: text.to_owned() })
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    /// `uname -r`.
    pub(crate) fn release(&self) -> Option<&str> {
        self.value("OSRELEASE")
    }

    /// A symbol's address.
    pub(crate) fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.value(&format!("SYMBOL({name})"))?, 16).ok()
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.value(&format!("NUMBER({name})"))?.parse().ok()
    }

    /// The kernel's own page tables.
    pub(crate) fn address_space(&self) -> Option<AddressSpace> {
        let offset = self.symbol("swapper_pg_dir")?.checked_sub(KERNEL_MAP)?;
        let root = offset.checked_add_signed(self.number("phys_base")?)?;
        let levels = if self.number("pgtable_l5_enabled").unwrap_or(0) == 0 { 4 } else { 5 };
        (root % PAGE_SIZE as u64 == 0).then_some(AddressSpace { root: Gpa(root), levels })
    }
}

/// The result of a scan of every frame, when no register leads to the kernel.
#[derive(Default)]
pub(crate) struct Traces {
    /// VMCOREINFO texts, also those of earlier kernels that are still in memory.
    pub(crate) notes: Vec<VmcoreInfo>,
    /// Frames that may be the kernel's own top page table: the lower half is empty, the last entry is not.
    pub(crate) roots: Vec<Gpa>,
}

impl Traces {
    const EACH_MAX: usize = 64;

    pub(crate) fn scan(pages: &Pages) -> Self {
        let mut traces = Self::default();
        let mut page = ZERO_PAGE;
        let view: &dyn MemoryView = pages.view();
        for gfn in view.layout().gfns() {
            if view.known_zero(gfn) || pages.read_into(gfn, &mut page).is_none() {
                continue;
            }
            if traces.notes.len() < Self::EACH_MAX {
                traces.notes.extend(VmcoreInfo::in_frame(&page));
            }
            let (low, high) = page.split_at(PAGE_SIZE / 2);
            let last = high.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let frame = (last & 0x000f_ffff_ffff_f000) >> 12;
            let table = last & 0x81 == 1 && view.layout().index(retrovisor_guest::Gfn(frame)).is_some();
            if table && traces.roots.len() < Self::EACH_MAX && low.iter().all(|byte| *byte == 0) {
                traces.roots.push(gfn.gpa());
            }
        }
        traces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Memory;

    const TEXT: &[u8] =
        b"OSRELEASE=6.1.0-test\nSYMBOL(swapper_pg_dir)=ffffffffbd010000\nSYMBOL(_stext)=ffffffffbb600000\n\
        NUMBER(phys_base)=-746586112\nNUMBER(pgtable_l5_enabled)=1\n";

    #[test]
    fn the_note_tells_the_page_tables() {
        let mut page = ZERO_PAGE;
        page[24..24 + TEXT.len()].copy_from_slice(TEXT);
        let note = VmcoreInfo::in_frame(&page).unwrap();
        assert_eq!(note.release(), Some("6.1.0-test"));
        assert_eq!(
            note.address_space(),
            Some(AddressSpace { root: Gpa(0x3d01_0000 - 746_586_112), levels: 5 })
        );
        assert_eq!(note.symbol("nothing"), None);
        page[25] = 0;
        assert_eq!(VmcoreInfo::in_frame(&page), None);
    }

    #[test]
    fn a_scan_finds_notes_and_roots() {
        let mut memory = Memory::new(64);
        let space = AddressSpace { root: Gpa(0x3000), levels: 4 };
        memory.map(space, KERNEL_MAP, Gpa(0), 2);
        memory.put(0x5000, TEXT);
        let traces = Traces::scan(&Pages::new(&memory));
        assert_eq!(traces.notes.len(), 1);
        assert!(traces.roots.contains(&Gpa(0x3000)));
    }
}
