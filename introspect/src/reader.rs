use std::cell::RefCell;

use retrovisor_guest::{Gpa, PAGE_SIZE};

use crate::{
    btf::Field,
    hash::{IntegerMap, IntegerSet},
    pages::Pages,
    paging::AddressSpace,
    printable::printable,
};

/// Reads a guest by virtual address. `None` always means: not mapped, not RAM, unreadable, or out of bounds.
pub(crate) struct Reader<'p, 'v> {
    pages: &'p Pages<'v>,
    space: AddressSpace,
    /// Page number → frame number of it.
    translations: RefCell<IntegerMap<u64, Option<u64>>>,
}

impl<'p, 'v> Reader<'p, 'v> {
    /// Bound on the cached translations.
    const TRANSLATIONS_MAX: usize = 1 << 18;

    pub(crate) fn new(pages: &'p Pages<'v>, space: AddressSpace) -> Self {
        Self { pages, space, translations: RefCell::default() }
    }

    pub(crate) fn pages(&self) -> &'p Pages<'v> {
        self.pages
    }

    pub(crate) fn translate(&self, virt: u64) -> Option<Gpa> {
        let number = virt >> 12;
        let known = self.translations.borrow().get(&number).copied();
        let frame = known.unwrap_or_else(|| {
            let frame = self.space.translate(self.pages, virt & !4095).map(|gpa| gpa.gfn().0);
            let mut translations = self.translations.borrow_mut();
            if translations.len() >= Self::TRANSLATIONS_MAX {
                translations.clear();
            }
            translations.insert(number, frame);
            frame
        })?;
        Some(Gpa((frame << 12) | (virt & 4095)))
    }

    /// Reads from `virt` into `into`.
    pub(crate) fn read(&self, virt: u64, into: &mut [u8]) -> Option<()> {
        let mut done = 0;
        while done < into.len() {
            let gpa = self.translate(virt.checked_add(done as u64)?)?;
            let offset = gpa.offset_in_page();
            let length = (PAGE_SIZE - offset).min(into.len() - done);
            let page = self.pages.frame(gpa.gfn())?;
            into[done..done + length].copy_from_slice(&page[offset..offset + length]);
            done += length;
        }
        Some(())
    }

    fn array<const N: usize>(&self, virt: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(virt, &mut bytes).map(|()| bytes)
    }

    pub(crate) fn u8(&self, virt: u64) -> Option<u8> {
        self.array::<1>(virt).map(|[byte]| byte)
    }

    pub(crate) fn u32(&self, virt: u64) -> Option<u32> {
        self.array(virt).map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&self, virt: u64) -> Option<i32> {
        self.array(virt).map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&self, virt: u64) -> Option<u64> {
        self.array(virt).map(u64::from_le_bytes)
    }

    /// A field of the structure at `base`, as an unsigned number of any width; also a bit field.
    pub(crate) fn number(&self, base: u64, field: Field) -> Option<u64> {
        let bytes = usize::try_from(field.size_bytes).ok().filter(|size| *size <= 8)?;
        let mut word = [0; 8];
        self.read(base.checked_add(field.offset_bytes)?, &mut word[..bytes])?;
        let word = u64::from_le_bytes(word);
        Some(match field.bits {
            Some((first, count)) => {
                (word >> first) & 1_u64.checked_shl(count.into()).map_or(u64::MAX, |bit| bit - 1)
            }
            None => word,
        })
    }

    /// A field that is a pointer.
    pub(crate) fn pointer(&self, base: u64, field: Field) -> Option<u64> {
        self.u64(base.checked_add(field.offset_bytes)?)
    }

    /// Text up to its NUL or `max` bytes, made printable.
    pub(crate) fn string(&self, virt: u64, max: usize) -> Option<String> {
        self.bytes_to_nul(virt, max).map(|bytes| printable(&bytes))
    }

    /// The bytes up to a NUL or `max`; fewer at the end of what is mapped.
    pub(crate) fn bytes_to_nul(&self, virt: u64, max: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < max {
            let at = virt.checked_add(bytes.len() as u64)?;
            let page_rest = PAGE_SIZE - usize::try_from(at & 4095).unwrap_or(0);
            let mut chunk = vec![0; page_rest.min(max - bytes.len()).min(64)];
            if self.read(at, &mut chunk).is_none() {
                return (!bytes.is_empty()).then_some(bytes);
            }
            match chunk.iter().position(|byte| *byte == 0) {
                Some(end) => {
                    bytes.extend_from_slice(&chunk[..end]);
                    break;
                }
                None => bytes.extend_from_slice(&chunk),
            }
        }
        Some(bytes)
    }

    /// Walks a circular `list_head` at `head`; yields the addresses of the links after it.
    pub(crate) fn list(&self, head: u64, max: usize) -> Walk {
        let (mut links, mut seen) = (Vec::new(), IntegerSet::default());
        let mut link = self.u64(head);
        while let Some(at) = link.filter(|at| *at != head) {
            if links.len() == max || at == 0 || !seen.insert(at) {
                return Walk { links, whole: false };
            }
            links.push(at);
            link = self.u64(at);
        }
        Walk { links, whole: link.is_some() }
    }
}

/// The links of a list, and whether the walk came back to its head.
pub(crate) struct Walk {
    pub(crate) links: Vec<u64>,
    /// `false` for a list that is unreadable, cyclic or longer than the bound; the links found so far are valid.
    pub(crate) whole: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Memory;

    const BASE: u64 = 0xffff_8880_0000_0000;

    fn memory() -> (Memory, AddressSpace) {
        let mut memory = Memory::new(32);
        let space = AddressSpace { root: Gpa(0x1000), levels: 4 };
        memory.map(space, BASE, Gpa(0x5000), 1);
        memory.map(space, BASE + 4096, Gpa(0x3000), 1);
        (memory, space)
    }

    #[test]
    fn reads_cross_pages_that_are_apart() {
        let (mut memory, space) = memory();
        memory.put(0x5ffe, b"ab");
        memory.put(0x3000, b"cd\x1b\0");
        let pages = Pages::new(&memory);
        let reader = Reader::new(&pages, space);
        assert_eq!(reader.u32(BASE + 4094), Some(u32::from_le_bytes(*b"abcd")));
        assert_eq!(reader.string(BASE + 4094, 100).as_deref(), Some("abcd\\x1b"));
        assert_eq!(reader.string(BASE + 4094, 3).as_deref(), Some("abc"));
        assert_eq!(reader.u64(BASE + 8190), None);
        assert_eq!(reader.u64(u64::MAX), None);
    }

    #[test]
    fn a_bit_field_is_cut_out() {
        let (mut memory, space) = memory();
        memory.put(0x5010, &[0b1010_0110, 1]);
        let pages = Pages::new(&memory);
        let reader = Reader::new(&pages, space);
        let field = Field { offset_bytes: 16, size_bytes: 2, bits: Some((5, 4)), ..Default::default() };
        assert_eq!(reader.number(BASE, field), Some(0b1101));
    }

    #[test]
    fn a_list_ends_at_its_head_and_a_cycle_is_noticed() {
        let (mut memory, space) = memory();
        memory.put_word(0x5000, BASE + 64);
        memory.put_word(0x5040, BASE + 128);
        memory.put_word(0x5080, BASE);
        {
            let pages = Pages::new(&memory);
            let walk = Reader::new(&pages, space).list(BASE, 10);
            assert_eq!((walk.links, walk.whole), (vec![BASE + 64, BASE + 128], true));
            assert!(!Reader::new(&pages, space).list(BASE, 1).whole);
        }
        memory.put_word(0x5080, BASE + 64);
        let pages = Pages::new(&memory);
        assert!(!Reader::new(&pages, space).list(BASE, 10).whole);
    }
}
