use retrovisor_guest::{Gfn, Gpa, PAGE_SIZE};

use crate::{pages::Pages, paging::AddressSpace};

/// Where the kernel's image is mapped: one range of virtual addresses onto one range of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageRange {
    /// First virtual address, that of `_text`.
    pub(crate) virt: u64,
    /// First physical address.
    pub(crate) gpa: Gpa,
    /// Bytes to the end of the last mapping.
    pub(crate) bytes: u64,
}

/// Where x86-64 maps the kernel's image (`__START_KERNEL_map`).
pub(crate) const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// The image's part of that map; modules follow.
const KERNEL_MAP_BYTES: u64 = 1 << 30;
/// Accepted sizes: no kernel is smaller, and a larger one would use too much of the host's memory.
const IMAGE_BYTES: std::ops::RangeInclusive<u64> = (4 << 20)..=(256 << 20);
/// A real tree needs about 300 tables for the image; the walk of a hostile one stops here.
const TABLES_MAX: u32 = 2048;

/// Frames requested at once: one read for a dump.
const RUN_FRAMES: usize = 64;

impl ImageRange {
    /// Finds the image in what a page-table tree maps in the kernel's range.
    pub(crate) fn find(pages: &Pages, space: AddressSpace) -> Option<Self> {
        let mut range: Option<Self> = None;
        space.walk(
            pages,
            (KERNEL_MAP, KERNEL_MAP + KERNEL_MAP_BYTES - 1),
            &mut TABLES_MAX.clone(),
            &mut |mapping| {
                let image = range.get_or_insert(Self { virt: mapping.virt, gpa: mapping.gpa, bytes: 0 });
                let offset = mapping.virt.wrapping_sub(image.virt);
                // Freed parts of the image may be unmapped; the remaining mappings must have the same offset.
                if mapping.gpa.0.checked_sub(image.gpa.0) == Some(offset) {
                    image.bytes = image.bytes.max(offset.saturating_add(mapping.bytes));
                }
            },
            &mut |_, _, _| (),
        );
        range.filter(|range| IMAGE_BYTES.contains(&range.bytes))
    }

    /// The part of the image that page tables protect as constant data, which contains kallsyms and the types; `None`
    /// before the kernel protects it.
    pub(crate) fn constants(&self, pages: &Pages, space: AddressSpace) -> Option<Self> {
        let (mut best, mut run) = (Self { bytes: 0, ..*self }, Self { bytes: 0, ..*self });
        space.walk(
            pages,
            (self.virt, self.virt.checked_add(self.bytes)?.checked_sub(1)?),
            &mut TABLES_MAX.clone(),
            &mut |mapping| {
                let offset = mapping.virt.wrapping_sub(self.virt);
                let in_line = mapping.gpa.0.checked_sub(self.gpa.0) == Some(offset) && offset < self.bytes;
                if !mapping.constant || !in_line {
                    return;
                }
                if run.virt.checked_add(run.bytes) != Some(mapping.virt) {
                    run = Self { virt: mapping.virt, gpa: mapping.gpa, bytes: 0 };
                }
                run.bytes += mapping.bytes.min(self.bytes - offset);
                if run.bytes > best.bytes {
                    best = run;
                }
            },
            &mut |_, _, _| (),
        );
        (best.bytes > 0).then_some(best)
    }

    pub(crate) fn contains(&self, virt: u64) -> bool {
        virt.checked_sub(self.virt).is_some_and(|offset| offset < self.bytes)
    }

    /// The image's bytes; those that cannot be read are zeros.
    pub(crate) fn read(&self, pages: &Pages) -> Image {
        let length = usize::try_from(self.bytes).unwrap_or(0);
        let mut bytes = vec![0; length];
        let (frames, _) = bytes.as_chunks_mut::<PAGE_SIZE>();
        for (run, frames) in (self.gpa.gfn().0..).step_by(RUN_FRAMES).zip(frames.chunks_mut(RUN_FRAMES)) {
            if pages.read_run(Gfn(run), frames).is_some() {
                continue;
            }
            for (gfn, frame) in (run..).map(Gfn).zip(frames) {
                if pages.view().known_zero(gfn) || pages.read_into(gfn, frame).is_none() {
                    frame.fill(0);
                }
            }
        }
        Image { virt: self.virt, bytes }
    }
}

/// A copy of the kernel's image for scans.
pub(crate) struct Image {
    /// Virtual address of the first byte.
    pub(crate) virt: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

impl Image {
    pub(crate) fn u16(&self, at: usize) -> Option<u16> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
    }

    pub(crate) fn u32(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    pub(crate) fn u64(&self, at: usize) -> Option<u64> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// The offset of a virtual address in the copy.
    pub(crate) fn offset(&self, virt: u64) -> Option<usize> {
        let offset = usize::try_from(virt.checked_sub(self.virt)?).ok()?;
        (offset < self.bytes.len()).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Memory;

    #[test]
    fn the_image_is_what_is_mapped_in_line() {
        let mut memory = Memory::new(4096);
        let space = AddressSpace { root: Gpa(0x1000), levels: 4 };
        for part in 0..3 {
            memory.map(space, KERNEL_MAP + (8 + part * 2) * (1 << 20), Gpa((2 + part * 2) << 20), 2);
        }
        memory.map(space, 0xffff_ffff_c000_0000, Gpa(0), 1);
        memory.put(0x20_0000, b"text");
        let pages = Pages::new(&memory);
        let range = ImageRange::find(&pages, space).unwrap();
        assert_eq!(range, ImageRange { virt: KERNEL_MAP + (8 << 20), gpa: Gpa(2 << 20), bytes: 6 << 20 });
        assert!(range.contains(KERNEL_MAP + (8 << 20)) && !range.contains(KERNEL_MAP + (14 << 20)));
        let image = range.read(&pages);
        assert!(image.bytes.starts_with(b"text"));
        assert_eq!(image.offset(KERNEL_MAP), None);
    }

    #[test]
    fn a_tree_without_a_kernel_has_no_image() {
        let memory = Memory::new(8);
        let space = AddressSpace { root: Gpa(0x1000), levels: 4 };
        assert_eq!(ImageRange::find(&Pages::new(&memory), space), None);
    }
}
