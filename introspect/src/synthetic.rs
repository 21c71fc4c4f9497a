//! A small memory that tests assemble themselves.

use retrovisor_guest::{Gfn, Gpa, MemoryError, MemoryLayout, MemoryView, PAGE_SIZE, Page};

use crate::AddressSpace;

pub(crate) struct Memory {
    layout: MemoryLayout,
    bytes: Vec<u8>,
    next_table: u64,
}

impl Memory {
    /// A memory of zeros; page tables are allocated from the middle on.
    pub(crate) fn new(pages: usize) -> Self {
        let bytes = vec![0; pages * PAGE_SIZE];
        let layout = MemoryLayout::flat(bytes.len() as u64).unwrap();
        Self { layout, next_table: (bytes.len() as u64 / 2) & !4095, bytes }
    }

    pub(crate) fn put(&mut self, gpa: u64, bytes: &[u8]) {
        let at = usize::try_from(gpa).unwrap();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put_word(&mut self, gpa: u64, word: u64) {
        self.put(gpa, &word.to_le_bytes());
    }

    fn word(&self, gpa: u64) -> u64 {
        let at = usize::try_from(gpa).unwrap();
        u64::from_le_bytes(*self.bytes[at..].first_chunk().unwrap())
    }

    /// Maps one page; `leaf` is the level of its entry: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
    pub(crate) fn map(&mut self, space: AddressSpace, virt: u64, gpa: Gpa, leaf: u8) {
        let mut table = space.root.0;
        for level in (leaf..=space.levels).rev() {
            let entry = table + ((virt >> (12 + 9 * (level - 1))) & 511) * 8;
            if level == leaf {
                self.put_word(entry, gpa.0 | 1 | if leaf > 1 { 0x80 } else { 0 });
            } else if self.word(entry) == 0 {
                self.put_word(entry, self.next_table | 1);
                self.next_table += 4096;
            }
            table = self.word(entry) & !0xfff;
        }
    }
}

impl MemoryView for Memory {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }
    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let at = usize::try_from(gfn.0).ok().and_then(|gfn| gfn.checked_mul(PAGE_SIZE));
        let page = at.and_then(|at| self.bytes.get(at..)?.first_chunk());
        *into = *page.ok_or(MemoryError::NotMemory { gpa: gfn.gpa() })?;
        Ok(())
    }
}
