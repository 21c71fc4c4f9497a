use retrovisor_guest::{Gfn, MemoryLayout, PAGE_SIZE, PageToken};

use crate::{btf::Field, probe::Probe};

/// The use of every frame according to the kernel's page descriptors, kept from one memory to the next: descriptors in
/// a frame with an unchanged page token are not read again.
#[derive(Default)]
pub(crate) struct Descriptors {
    uses: Vec<Use>,
    /// For each frame of descriptors, by the index of its first descriptor divided by 8: the frame's page token.
    tokens: Vec<Option<PageToken>>,
    base: u64,
    size: u64,
}

/// The use of a frame according to its descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Use {
    /// There is no descriptor, or it cannot be read.
    #[default]
    Missing,
    /// In use for a purpose that the descriptor does not record.
    Plain,
    /// Never given to the page allocator: taken before it started, or by firmware.
    Reserved,
    /// The first of a free block.
    Free { order: u32 },
    /// A page table.
    Table,
    /// Given back to the host.
    Offline,
    /// Memory of processes, not of a file.
    Anonymous,
    /// The first of a slab: the address of its cache, and how many objects it has.
    Slab { cache: u64, objects: u16 },
    /// A page of a file: its `address_space`, and the offset in pages.
    File { mapping: u64, page: u64 },
    /// A part of a larger block, whose first frame is `head`.
    Tail { head: u64 },
}

const ORDER_MAX: u64 = 20;

/// The encodings of a block's type: in kernels up to 6.11 a cleared bit below a base of ones, …
const OLD_BASE: u32 = 0xf000_0000;
const OLD_BUDDY: u32 = 0x80;
const OLD_OFFLINE: u32 = 0x100;
const OLD_TABLE: u32 = 0x200;
/// … later a number in the top byte.
const NEW_BUDDY: u32 = 0xf0;
const NEW_OFFLINE: u32 = 0xf1;
const NEW_TABLE: u32 = 0xf2;

/// The fields of a page descriptor.
struct Fields {
    size: u64,
    flags: usize,
    mapping: usize,
    index: usize,
    private: usize,
    page_type: usize,
    head: usize,
    cache: Option<usize>,
    objects: Option<Field>,
    slab_flag: Option<u32>,
    slab_type: Option<u32>,
    reserved_flag: Option<u32>,
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let place = |path: &str| usize::try_from(probe.field("page", path)?.offset_bytes).ok();
        // The fields of a slab overlay the descriptor; since 5.17 they are in a structure of their own.
        let slab = |path: &str| probe.field("slab", path).or_else(|| probe.field("page", path));
        let number = |item: &str| probe.types.enumerator(item).and_then(|value| u32::try_from(value).ok());
        let flag = |item: &str| number(item).filter(|bit| *bit < 64);
        Some(Self {
            size: probe.types.size_of("page").filter(|size| (32..=512).contains(size))?,
            flags: place("flags").or_else(|| place("flags.f"))?,
            mapping: place("mapping")?,
            index: place("index").or_else(|| place("__folio_index"))?,
            private: place("private")?,
            page_type: place("page_type")?,
            head: place("compound_head").or_else(|| place("compound_info"))?,
            cache: slab("slab_cache").and_then(|field| usize::try_from(field.offset_bytes).ok()),
            objects: slab("objects"),
            slab_flag: flag("PG_slab"),
            slab_type: number("PGTY_slab"),
            reserved_flag: flag("PG_reserved"),
        })
    }

    /// Decodes the descriptor at an address. `first` is the address of the descriptor of frame 0.
    fn read(&self, descriptor: &[u8], at: u64, first: u64) -> Option<Use> {
        let flag = |bit: Option<u32>| {
            bit.zip(word(descriptor, self.flags)).is_some_and(|(bit, flags)| flags >> bit & 1 == 1)
        };
        let head = word(descriptor, self.head)?;
        if head & 1 == 1 {
            // A pointer to the first descriptor; newer kernels keep a mask that leads to it.
            let head = if head >> 32 == 0xffff_ffff { at & (head - 1) } else { head - 1 };
            return Some(Use::Tail { head: head.checked_sub(first)? / self.size });
        }
        let kind = half(descriptor, self.page_type)?;
        let is = |old: u32, new: u32| match self.slab_type {
            Some(_) => kind >> 24 == new,
            None => kind & (OLD_BASE | old) == OLD_BASE,
        };
        let slab = match self.slab_type {
            Some(slab) => kind >> 24 == slab,
            None => flag(self.slab_flag),
        };
        if slab {
            let cache = word(descriptor, self.cache?)?;
            return Some(Use::Slab { cache, objects: self.objects(descriptor).unwrap_or(0) });
        }
        if is(OLD_BUDDY, NEW_BUDDY) {
            let order = word(descriptor, self.private)?.min(ORDER_MAX);
            return Some(Use::Free { order: u32::try_from(order).unwrap_or(0) });
        }
        if is(OLD_TABLE, NEW_TABLE) {
            return Some(Use::Table);
        }
        if is(OLD_OFFLINE, NEW_OFFLINE) {
            return Some(Use::Offline);
        }
        if flag(self.reserved_flag) {
            return Some(Use::Reserved);
        }
        let mapping = word(descriptor, self.mapping)?;
        Some(match mapping & 3 {
            1 | 3 => Use::Anonymous,
            // A mapping is a kernel pointer; any other value means that the bytes are used for something else.
            0 if mapping.cast_signed() < 0 => Use::File { mapping, page: word(descriptor, self.index)? },
            _ => Use::Plain,
        })
    }

    fn objects(&self, descriptor: &[u8]) -> Option<u16> {
        let field = self.objects?;
        let at = usize::try_from(field.offset_bytes).ok()?;
        let raw = u64::from(half(descriptor, at & !3)?) >> ((at & 3) * 8);
        let (first, count) = field.bits.unwrap_or((0, 16));
        u16::try_from((raw >> first) & ((1 << count.min(16)) - 1)).ok()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

impl Descriptors {
    /// Reads the descriptors of every frame, or of those that may have changed. When the descriptors cannot be read,
    /// the use of every frame is `Missing`.
    pub(crate) fn refresh(&mut self, probe: &Probe, layout: &MemoryLayout) {
        let count = usize::try_from(layout.pages()).unwrap_or(0);
        let (Some(fields), Some(base)) = (Fields::of(probe), probe.word("vmemmap_base")) else {
            *self = Self { uses: vec![Use::Missing; count], ..Self::default() };
            return;
        };
        if (self.uses.len(), self.base, self.size) != (count, base, fields.size) {
            *self = Self {
                uses: vec![Use::Missing; count],
                tokens: vec![None; count.div_ceil(8)],
                base,
                size: fields.size,
            };
        }
        let size = usize::try_from(fields.size).unwrap_or(PAGE_SIZE);
        // The current frame of descriptors: its page number, its contents, and whether the earlier result is still
        // valid.
        let mut held = (u64::MAX, None, false);
        let mut own = vec![0; size];
        for (index, gfn) in layout.gfns().enumerate() {
            let at = gfn.0.checked_mul(fields.size).and_then(|offset| base.checked_add(offset));
            let Some(at) = at else { continue };
            if held.0 != at >> 12 {
                held = self.hold(probe, at, index);
            }
            if held.2 {
                continue;
            }
            let start = usize::try_from(at & 4095).unwrap_or(0);
            let inside = held
                .1
                .as_ref()
                .and_then(|page: &std::sync::Arc<[u8; PAGE_SIZE]>| page.get(start..start + size));
            let descriptor = match inside {
                Some(descriptor) => Some(descriptor),
                // A descriptor that spans two frames.
                None => probe.reader.read(at, &mut own).map(|()| own.as_slice()),
            };
            let reported = descriptor.and_then(|descriptor| fields.read(descriptor, at, base));
            if let Some(place) = self.uses.get_mut(index) {
                *place = reported.unwrap_or_default();
            }
        }
    }

    /// The frame of descriptors at an address, and whether the result of the last read is still valid.
    fn hold(
        &mut self,
        probe: &Probe,
        at: u64,
        index: usize,
    ) -> (u64, Option<std::sync::Arc<[u8; PAGE_SIZE]>>, bool) {
        let gfn = probe.reader.translate(at).map(retrovisor_guest::Gpa::gfn);
        let pages = probe.reader.pages();
        // Descriptors that span two frames are read each time.
        let whole = (PAGE_SIZE as u64).is_multiple_of(self.size);
        let token = gfn.filter(|_| whole).and_then(|gfn| pages.view().token(gfn));
        let kept = self.tokens.get_mut(index / 8);
        let same = token.is_some() && kept.as_ref().is_some_and(|kept| **kept == token);
        if let Some(kept) = kept {
            *kept = token;
        }
        let page = gfn.filter(|_| !same).and_then(|gfn| pages.frame(gfn));
        (at >> 12, page, same)
    }

    /// The use of the frame with this index.
    pub(crate) fn at(&self, index: usize) -> Use {
        self.uses.get(index).copied().unwrap_or_default()
    }

    /// The frame whose descriptor is at an address.
    pub(crate) fn frame_of(&self, descriptor: u64) -> Option<Gfn> {
        let offset = descriptor.checked_sub(self.base)?;
        (offset.checked_rem(self.size)? == 0).then(|| Gfn(offset / self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(slab_flag: Option<u32>, slab_type: Option<u32>) -> Fields {
        let objects = Field { offset_bytes: 42, size_bytes: 2, bits: Some((0, 15)), type_id: 0 };
        Fields {
            size: 64,
            flags: 0,
            mapping: 24,
            index: 32,
            private: 40,
            page_type: 48,
            head: 8,
            cache: Some(24),
            objects: Some(objects),
            slab_flag,
            slab_type,
            reserved_flag: Some(12),
        }
    }

    fn with(parts: &[(usize, &[u8])]) -> [u8; 64] {
        let mut descriptor = [0; 64];
        for (at, bytes) in parts {
            descriptor[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        descriptor
    }

    #[test]
    fn free_and_slab_are_recognised_by_flag_or_by_type() {
        let old = fields(Some(9), None);
        let free = with(&[(40, &[3]), (48, &0xffff_ff7f_u32.to_le_bytes())]);
        assert_eq!(old.read(&free, 0x2000, 0), Some(Use::Free { order: 3 }));
        let slab = with(&[(0, &[0, 2]), (24, &[7]), (42, &[5, 0x80]), (48, &[0xff; 4])]);
        assert_eq!(old.read(&slab, 0x2000, 0), Some(Use::Slab { cache: 7, objects: 5 }));
        let new = fields(None, Some(0xf5));
        let slab = with(&[(24, &[7]), (48, &0xf500_0000_u32.to_le_bytes())]);
        assert_eq!(new.read(&slab, 0x2000, 0), Some(Use::Slab { cache: 7, objects: 0 }));
        for (kind, reported) in [
            (0xf000_0000_u32, Use::Free { order: 0 }),
            (0xf200_0000, Use::Table),
            (u32::MAX, Use::Plain),
            (0, Use::Plain),
        ] {
            assert_eq!(new.read(&with(&[(48, &kind.to_le_bytes())]), 0, 0), Some(reported));
        }
        let table = with(&[(48, &0xffff_fdff_u32.to_le_bytes())]);
        assert_eq!(old.read(&table, 0, 0), Some(Use::Table));
    }

    #[test]
    fn mappings_tell_files_from_anonymous_memory() {
        let old = fields(Some(9), None);
        let mapped = |mapping: u64| {
            old.read(&with(&[(24, &mapping.to_le_bytes()), (32, &[9]), (48, &[0xff; 4])]), 0, 0).unwrap()
        };
        assert_eq!(mapped(0xffff_8880_0000_1000), Use::File { mapping: 0xffff_8880_0000_1000, page: 9 });
        assert_eq!(mapped(0xffff_8880_0000_1001), Use::Anonymous);
        assert_eq!(mapped(0x1000), Use::Plain);
        assert_eq!(mapped(0), Use::Plain);
        let tail = with(&[(8, &0x1041_u64.to_le_bytes())]);
        assert_eq!(old.read(&tail, 0x1080, 0x1000), Some(Use::Tail { head: 1 }));
        let masked = with(&[(8, &0xffff_ffff_ffff_ff01_u64.to_le_bytes())]);
        assert_eq!(old.read(&masked, 0x11c0, 0x1000), Some(Use::Tail { head: 4 }));
        assert_eq!(old.read(&tail[..12], 0, 0), None);
    }
}
