use retrovisor_guest::{Gfn, Gpa, VcpuRegisters};

use crate::pages::Pages;

/// A page-table tree of x86-64 long mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressSpace {
    /// Physical address of the top table.
    pub root: Gpa,
    /// Depth: 4 or 5.
    pub levels: u8,
}

/// A leaf of the tree: what one entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// First virtual address of the page, huge or not.
    pub(crate) virt: u64,
    /// First physical address.
    pub(crate) gpa: Gpa,
    /// Bytes: 4 KiB, 2 MiB or 1 GiB.
    pub(crate) bytes: u64,
    /// Whether it may be neither written nor executed.
    pub(crate) constant: bool,
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const NO_EXECUTE: u64 = 1 << 63;
const HUGE: u64 = 1 << 7;
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl AddressSpace {
    /// The tree that a vCPU uses, or `None` when it is not in long mode with paging on.
    #[must_use]
    pub fn of(registers: &VcpuRegisters) -> Option<Self> {
        let long = registers.cr0 & CR0_PG != 0 && registers.efer & EFER_LMA != 0;
        let levels = if registers.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
        long.then_some(Self { root: Gpa(registers.cr3 & ADDRESS), levels })
    }

    /// The mapping that contains a virtual address.
    pub(crate) fn mapping(&self, pages: &Pages, virt: u64) -> Option<Mapping> {
        if !self.is_canonical(virt) {
            return None;
        }
        let mut table = self.root;
        for level in (1..=self.levels).rev() {
            let entry = pages.word(table.checked_add(entry_index(virt, level) * 8)?)?;
            if entry & PRESENT == 0 {
                return None;
            }
            if let Some((gpa, bytes)) = leaf(entry, level) {
                let virt = virt & !(bytes - 1);
                return Some(Mapping { virt, gpa, bytes, constant: is_constant(entry) });
            }
            table = Gpa(entry & ADDRESS);
        }
        None
    }

    /// The physical address of a virtual one.
    pub(crate) fn translate(&self, pages: &Pages, virt: u64) -> Option<Gpa> {
        let mapping = self.mapping(pages, virt)?;
        mapping.gpa.checked_add(virt - mapping.virt)
    }

    /// Calls `each` for every mapping that begins in `first..=last`, ascending, and `table` for every frame that holds
    /// a page table on the way (with the first address that it covers and its level). Stops after `budget` table
    /// frames, which also ends the walk of a cyclic tree. Returns whether the walk was complete.
    pub(crate) fn walk(
        &self,
        pages: &Pages,
        (first, last): (u64, u64),
        budget: &mut u32,
        each: &mut dyn FnMut(Mapping),
        table: &mut dyn FnMut(Gfn, u64, u8),
    ) -> bool {
        let mut walk = Walk { pages, first, last, budget, each, table };
        walk.descend(self.root, self.levels, 0, self.levels)
    }

    /// Whether the bits above the tree's range repeat its highest bit.
    pub(crate) fn is_canonical(&self, virt: u64) -> bool {
        let unused = 64 - self.reach_bits();
        ((virt << unused).cast_signed() >> unused).cast_unsigned() == virt
    }

    fn reach_bits(&self) -> u32 {
        12 + 9 * u32::from(self.levels)
    }
}

struct Walk<'w, 'v> {
    pages: &'w Pages<'v>,
    first: u64,
    last: u64,
    budget: &'w mut u32,
    each: &'w mut dyn FnMut(Mapping),
    table: &'w mut dyn FnMut(Gfn, u64, u8),
}

impl Walk<'_, '_> {
    /// Recursion is at most five deep.
    fn descend(&mut self, table: Gpa, level: u8, base: u64, levels: u8) -> bool {
        let Some(page) = self.pages.frame(table.gfn()) else { return true };
        if *self.budget == 0 {
            return false;
        }
        *self.budget -= 1;
        (self.table)(table.gfn(), base, level);
        let span = 1_u64 << (12 + 9 * u32::from(level - 1));
        for (index, entry) in (0_u64..).zip(page.as_chunks::<8>().0) {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT == 0 {
                continue;
            }
            let mut virt = base + index * span;
            if level == levels && index >= 256 {
                // Sign extension of the upper half.
                virt |= u64::MAX << (12 + 9 * u32::from(levels) - 1);
            }
            if virt > self.last || virt + (span - 1) < self.first {
                continue;
            }
            if let Some((gpa, bytes)) = leaf(entry, level) {
                (self.each)(Mapping { virt, gpa, bytes, constant: is_constant(entry) });
            } else if level > 1 && !self.descend(Gpa(entry & ADDRESS), level - 1, virt, levels) {
                return false;
            }
        }
        true
    }
}

/// The mapping of an entry that is a leaf at this level: physical address and size.
fn leaf(entry: u64, level: u8) -> Option<(Gpa, u64)> {
    let bytes = 1_u64 << (12 + 9 * u32::from(level - 1));
    (level == 1 || (level <= 3 && entry & HUGE != 0)).then(|| (Gpa(entry & ADDRESS & !(bytes - 1)), bytes))
}

fn is_constant(entry: u64) -> bool {
    entry & (WRITABLE | NO_EXECUTE) == NO_EXECUTE
}

fn entry_index(virt: u64, level: u8) -> u64 {
    (virt >> (12 + 9 * u32::from(level - 1))) & 511
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Memory;

    #[test]
    fn four_and_five_levels_and_huge_pages_translate() {
        for levels in [4, 5] {
            let mut memory = Memory::new(64);
            let space = AddressSpace { root: Gpa(0x1000), levels };
            memory.map(space, 0xffff_ffff_8123_4000, Gpa(0x7000), 1);
            memory.map(space, 0xffff_ffff_8140_0000, Gpa(0x20_0000), 2);
            memory.map(space, 0xffff_8880_4000_0000, Gpa(0x4000_0000), 3);
            memory.map(space, 0x7fff_0000_1000, Gpa(0x9000), 1);
            let pages = Pages::new(&memory);
            let at = |virt| space.translate(&pages, virt).map(|gpa| gpa.0);
            assert_eq!(at(0xffff_ffff_8123_4567), Some(0x7567));
            assert_eq!(at(0xffff_ffff_8154_3210), Some(0x34_3210));
            assert_eq!(at(0xffff_8880_5234_5678), Some(0x5234_5678));
            assert_eq!(at(0x7fff_0000_1fff), Some(0x9fff));
            assert_eq!(at(0xffff_ffff_8123_5000), None);
            assert_eq!(at(0x8000_0000_0000_0000), None, "not canonical");
            let (mut found, mut tables) = (Vec::new(), 0);
            let whole = space.walk(
                &pages,
                (0, u64::MAX),
                &mut 100,
                &mut |mapping| found.push(mapping.virt),
                &mut |_, _, _| tables += 1,
            );
            assert!(whole);
            assert_eq!(
                found,
                [0x7fff_0000_1000, 0xffff_8880_4000_0000, 0xffff_ffff_8123_4000, 0xffff_ffff_8140_0000]
            );
            assert!(tables > u32::from(levels));
        }
    }

    #[test]
    fn a_tree_that_bites_its_tail_ends() {
        let mut memory = Memory::new(4);
        let space = AddressSpace { root: Gpa(0x1000), levels: 5 };
        for entry in 0..512 {
            memory.put_word(0x1000 + entry * 8, 0x1001);
        }
        let pages = Pages::new(&memory);
        let mut mappings = 0_u64;
        assert!(!space.walk(&pages, (0, u64::MAX), &mut 500, &mut |_| mappings += 1, &mut |_, _, _| ()));
        assert!(mappings <= 500 * 512);
    }

    #[test]
    fn paging_off_is_no_address_space() {
        let mut registers = VcpuRegisters { cr3: 0x5018, ..Default::default() };
        assert_eq!(AddressSpace::of(&registers), None);
        (registers.cr0, registers.efer, registers.cr4) = (CR0_PG, EFER_LMA, CR4_LA57);
        assert_eq!(AddressSpace::of(&registers), Some(AddressSpace { root: Gpa(0x5000), levels: 5 }));
    }
}
