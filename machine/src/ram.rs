use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MmapAdvise, madvise};
use nix::unistd::{Whence, lseek};
use retrovisor_guest::{
    Gfn, Gpa, LINE_SIZE, MachineError, MemoryError, MemoryLayout, MemorySlot, MemoryView, PAGE_SHIFT,
    PAGE_SIZE, Page, PageContent, is_zero,
};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

mod stream;

/// A guest's RAM, mapped into this process.
pub(crate) struct Ram {
    layout: MemoryLayout,
    map: GuestMemoryMmap<()>,
    /// Holes of the file under it are pages of zeros.
    shows_holes: bool,
}

impl Ram {
    /// New memory of zeros, visible only to this process.
    pub(crate) fn anonymous(layout: MemoryLayout) -> Result<Self, MachineError> {
        Self::mapped(layout, None, 0)
    }

    /// A file that another process uses as the guest's RAM: the slots follow one another from `offset` on.
    pub(crate) fn shared(
        layout: MemoryLayout,
        file: impl Into<Arc<File>>,
        offset: u64,
    ) -> Result<Self, MachineError> {
        let file = file.into();
        let length_bytes = file
            .metadata()
            .map_err(|source| MachineError::Io {
                doing: "looking at the guest's memory file".into(),
                source,
            })?
            .len();
        // Touching a mapping past the end of its file kills the process.
        if length_bytes.checked_sub(offset).is_none_or(|rest| rest < layout.bytes()) {
            return Err(MachineError::Driver {
                doing: "mapping the guest's memory file".into(),
                message: format!("it has {length_bytes} bytes and the guest {}", layout.bytes()),
            });
        }
        Self::mapped(layout, Some(&file), offset)
    }

    /// A file of a machine's whole memory, which does not change: writes are private to this mapping.
    pub(crate) fn private(layout: MemoryLayout, file: &Arc<File>) -> Result<Self, MachineError> {
        let mut regions = Vec::new();
        let mut offset = 0;
        for slot in layout.slots() {
            let length = usize::try_from(slot.length_bytes).map_err(|_| too_large(&layout))?;
            // Checks that the file is long enough.
            let region = MmapRegion::build(
                Some(FileOffset::from_arc(Arc::clone(file), offset)),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            );
            let region =
                region.ok().and_then(|region| GuestRegionMmap::new(region, GuestAddress(slot.gpa.0)));
            regions.push(region.ok_or_else(|| MachineError::Driver {
                doing: "mapping a template".into(),
                message: format!("{length} bytes at {offset} are not to be had"),
            })?);
            offset += slot.length_bytes;
        }
        let map = GuestMemoryMmap::from_regions(regions).map_err(|error| MachineError::Driver {
            doing: "mapping a template".into(),
            message: error.to_string(),
        })?;
        Ok(Self::of(layout, map, false))
    }

    fn mapped(layout: MemoryLayout, file: Option<&Arc<File>>, mut offset: u64) -> Result<Self, MachineError> {
        let shows_holes = file.is_some();
        let mut ranges = Vec::new();
        for slot in layout.slots() {
            let length = usize::try_from(slot.length_bytes).map_err(|_| too_large(&layout))?;
            let part = file.map(|file| FileOffset::from_arc(Arc::clone(file), offset));
            ranges.push((GuestAddress(slot.gpa.0), length, part));
            offset += slot.length_bytes;
        }
        let map = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(|error| MachineError::Driver {
            doing: format!("mapping {} bytes of guest memory", layout.bytes()),
            message: error.to_string(),
        })?;
        Ok(Self::of(layout, map, shows_holes))
    }

    /// Excludes the guest's memory from core dumps of this process.
    fn of(layout: MemoryLayout, map: GuestMemoryMmap<()>, shows_holes: bool) -> Self {
        for region in map.iter() {
            let length = usize::try_from(region.len()).unwrap_or(usize::MAX);
            if let Some(start) = NonNull::new(region.as_ptr().cast()) {
                // SAFETY: the range is a mapping of this process, and the advice changes no byte of it.
                let advised = unsafe { madvise(start, length, MmapAdvise::MADV_DONTDUMP) };
                if let Err(error) = advised {
                    tracing::warn!(%error, "a core dump of this process would contain guest memory");
                }
            }
        }
        Self { layout, map, shows_holes }
    }

    /// The slots, each with its address in this process.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (MemorySlot, *mut u8)> + '_ {
        self.layout.slots().iter().zip(self.map.iter()).map(|(slot, region)| (*slot, region.as_ptr()))
    }

    /// Writes bytes across page boundaries, within one slot.
    pub(crate) fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.map.write_slice(bytes, GuestAddress(gpa.0)).map_err(host)
    }

    /// The memory for loaders of kernels.
    pub(crate) fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// Writes the content of one frame. A removed frame reads as zeros until the guest uses it again.
    pub(crate) fn write_page(&self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MemoryError> {
        let (region, at) = self.region(gfn)?;
        region.write_slice(content.bytes(), at).map_err(host)
    }

    /// Writes lines of the content of one frame: line `n` where bit `n` of `lines` is set.
    pub(crate) fn write_lines(
        &self,
        gfn: Gfn,
        content: PageContent<'_>,
        lines: u64,
    ) -> Result<(), MemoryError> {
        let page = content.bytes();
        let (region, at) = self.region(gfn)?;
        let mut rest = lines;
        while rest != 0 {
            let first = rest.trailing_zeros();
            let end = first + (rest >> first).trailing_ones();
            let (from, to) = (first as usize * LINE_SIZE, end as usize * LINE_SIZE);
            region.write_slice(&page[from..to], MemoryRegionAddress(at.0 + from as u64)).map_err(host)?;
            // After a run to its end, nothing is left of the page.
            rest &= u64::MAX.checked_shl(end).unwrap_or(0);
        }
        Ok(())
    }

    fn region(
        &self,
        gfn: Gfn,
    ) -> Result<(&<GuestMemoryMmap<()> as GuestMemoryBackend>::R, MemoryRegionAddress), MemoryError> {
        // A frame number past the layout would wrap when it becomes an address.
        let not_memory = || MemoryError::NotMemory { gpa: gfn.gpa() };
        self.layout.index(gfn).ok_or_else(not_memory)?;
        let address = GuestAddress(gfn.gpa().0);
        let region = self.map.find_region(address).ok_or_else(not_memory)?;
        let at = region.to_region_addr(address).ok_or_else(not_memory)?;
        Ok((region, at))
    }
}

impl MemoryView for Ram {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, gfn: Gfn, into: &mut Page) -> Result<(), MemoryError> {
        let (region, at) = self.region(gfn)?;
        debug_assert_eq!(into.len(), PAGE_SIZE);
        region.read_slice(into, at).map_err(host)
    }

    fn read_nontemporal(&self, gfn: Gfn, into: &mut Page) -> Result<bool, MemoryError> {
        if !stream::can_go_to(into) {
            self.read_page(gfn, into)?;
            return Ok(is_zero(into));
        }
        let (region, at) = self.region(gfn)?;
        let from = region.get_slice(at, PAGE_SIZE).map_err(host)?;
        // SAFETY: the slice is a page of a mapping that lives as long as `self`; whether it is aligned was asked above.
        Ok(unsafe { stream::copy(from.ptr_guard().as_ptr(), into) })
    }

    /// Holes of the memory file were never written. Reading them instead would fill them with pages of zeros.
    fn known_zero(&self, gfn: Gfn) -> bool {
        if !self.shows_holes {
            return false;
        }
        let Ok((region, at)) = self.region(gfn) else { return false };
        let Some(file) = region.file_offset() else { return false };
        let Ok(offset) = i64::try_from(file.start() + at.0) else { return false };
        match lseek(file.file(), offset, Whence::SeekData) {
            Ok(data) => data - offset >= 1 << PAGE_SHIFT,
            Err(errno) => errno == Errno::ENXIO,
        }
    }
}

fn host(error: vm_memory::GuestMemoryError) -> MemoryError {
    MemoryError::Host(std::io::Error::other(error))
}

fn too_large(layout: &MemoryLayout) -> MachineError {
    MachineError::Config {
        what: format!("{} bytes of memory do not fit this host's address space", layout.bytes()),
        help: "Ask for less memory".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use retrovisor_guest::{MemorySlot, ZERO_PAGE, differing_lines};

    use super::*;

    fn split() -> MemoryLayout {
        let slot = |gpa, pages: u64| MemorySlot { gpa: Gpa(gpa), length_bytes: pages * 4096 };
        MemoryLayout::new(vec![slot(0, 2), slot(4 << 30, 3)]).unwrap()
    }

    #[test]
    fn slots_are_one_after_another_in_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(5 * 4096).unwrap();
        let ram = Ram::shared(split(), file.try_clone().unwrap(), 0).unwrap();
        ram.write_page(Gfn(1), PageContent::Data(&[1; PAGE_SIZE])).unwrap();
        ram.write_page(Gfn((4 << 18) + 2), PageContent::Data(&[2; PAGE_SIZE])).unwrap();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes[4095], bytes[4096], bytes[8192], bytes[4 * 4096]), (0, 1, 0, 2));
        file.seek(SeekFrom::Start(4 * 4096)).unwrap();
        file.write_all(&[7]).unwrap();
        let mut page = ZERO_PAGE;
        ram.read_page(Gfn((4 << 18) + 2), &mut page).unwrap();
        assert_eq!((page[0], page[1]), (7, 2));
    }

    #[test]
    fn holes_are_known_to_be_zero_and_stay_holes() {
        let file = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(5 * 4096).unwrap();
        let ram = Ram::shared(split(), file, 0).unwrap();
        ram.write_page(Gfn(1), PageContent::Data(&[1; PAGE_SIZE])).unwrap();
        let known: Vec<bool> = split().gfns().map(|gfn| ram.known_zero(gfn)).collect();
        assert_eq!(known, [true, false, true, true, true]);
        assert!(!ram.known_zero(Gfn(2)), "not memory");
    }

    #[test]
    fn nontemporal_reads_copy_and_find_zeros_whatever_the_alignment() {
        #[repr(align(64))]
        struct Room([u8; 2 * PAGE_SIZE]);
        let ram = Ram::anonymous(split()).unwrap();
        let mut room = Room([9; 2 * PAGE_SIZE]);
        let mut page = ZERO_PAGE;
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = u8::try_from(at % 251).unwrap();
        }
        let mut last = ZERO_PAGE;
        last[PAGE_SIZE - 1] = 1;
        for offset in [0, 64, 16, 1] {
            for content in [page, last, ZERO_PAGE] {
                ram.write_page(Gfn(1), PageContent::Data(&content)).unwrap();
                let into = room.0[offset..].first_chunk_mut().unwrap();
                assert_eq!(ram.read_nontemporal(Gfn(1), into).unwrap(), content == ZERO_PAGE);
                assert!(*into == content, "at {offset}");
            }
        }
    }

    #[test]
    fn only_the_lines_that_are_named_are_written() {
        let ram = Ram::anonymous(split()).unwrap();
        for lines in [0, 1, 1 << 63, 0b1011, u64::MAX, u64::MAX << 1, u64::MAX >> 1] {
            ram.write_page(Gfn(1), PageContent::Zero).unwrap();
            ram.write_lines(Gfn(1), PageContent::Data(&[7; PAGE_SIZE]), lines).unwrap();
            let mut page = [1; PAGE_SIZE];
            ram.read_page(Gfn(1), &mut page).unwrap();
            assert_eq!(differing_lines(&page, &ZERO_PAGE), lines);
            assert_eq!(differing_lines(&page, &[7; PAGE_SIZE]), !lines);
        }
        assert!(ram.write_lines(Gfn(2), PageContent::Zero, 0).is_err(), "not memory");
    }

    #[test]
    fn a_short_file_and_a_frame_in_the_hole_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * 4096).unwrap();
        assert!(Ram::shared(split(), file, 0).is_err());
        let ram = Ram::anonymous(split()).unwrap();
        let mut page = ZERO_PAGE;
        for gfn in [2, 1 << 19, (4 << 18) + 3, 1 << 52, u64::MAX] {
            assert!(
                matches!(ram.read_page(Gfn(gfn), &mut page), Err(MemoryError::NotMemory { .. })),
                "{gfn:#x}"
            );
            assert!(ram.write_page(Gfn(gfn), PageContent::Zero).is_err());
        }
    }
}
