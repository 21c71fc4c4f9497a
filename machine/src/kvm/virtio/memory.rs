use std::sync::Arc;

use retrovisor_guest::{Gpa, MachineError, MemoryError, PAGE_SHIFT, PageSet};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _,
    GuestRegionMmap, MmapRegion,
};

use super::dirty::DirtyLog;
use crate::ram::Ram;

/// A guest's memory for writes of devices: KVM does not log those, so they are logged here.
#[derive(Clone, Debug)]
pub(crate) struct DeviceMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    map: GuestMemoryMmap<DirtyLog>,
    /// The mapping to which `map` points.
    _mappings: Vec<Arc<MmapRegion>>,
}

impl DeviceMemory {
    /// The same memory with a separate log.
    pub(crate) fn over(ram: &Ram) -> Result<Self, MachineError> {
        let failed = |message: String| MachineError::Driver {
            doing: "showing the guest's memory to its devices".into(),
            message,
        };
        let mut regions = Vec::new();
        let mut mappings = Vec::new();
        for region in ram.map().iter() {
            let mapping = region.get_mmap();
            let log = <DirtyLog as vm_memory::bitmap::NewBitmap>::with_len(mapping.size());
            let builder = MmapRegionBuilder::new_with_bitmap(mapping.size(), log)
                .with_mmap_prot(mapping.prot())
                .with_mmap_flags(mapping.flags());
            // SAFETY: the mapping of this address and size lives as long as the `Arc` that is kept beside.
            let builder = unsafe { builder.with_raw_mmap_pointer(mapping.as_ptr()) };
            let logged = builder.build().map_err(|error| failed(error.to_string()))?;
            let logged = GuestRegionMmap::new(logged, region.start_addr());
            regions.push(logged.ok_or_else(|| failed("it runs past the end of addresses".into()))?);
            mappings.push(mapping);
        }
        let map = GuestMemoryMmap::from_regions(regions).map_err(|error| failed(error.to_string()))?;
        Ok(Self(Arc::new(Shared { map, _mappings: mappings })))
    }

    /// The memory.
    pub(crate) fn map(&self) -> &GuestMemoryMmap<DirtyLog> {
        &self.0.map
    }

    /// Writes bytes within one slot.
    pub(crate) fn write(&self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        let written = self.map().write_slice(bytes, GuestAddress(at.0));
        written.map_err(|error| MemoryError::Host(std::io::Error::other(error)))
    }

    /// Adds the frames that devices have written since the last call.
    pub(crate) fn take_dirty(&self, into: &mut PageSet) {
        let mut first = 0;
        for region in self.0.map.iter() {
            let mapping: &MmapRegion<DirtyLog> = region;
            mapping.bitmap().take(|word, bits| into.insert_words(first + word as u64 * 64, &[bits]));
            first += region.len() >> PAGE_SHIFT;
        }
    }
}

#[cfg(test)]
mod tests {
    use retrovisor_guest::{Gpa, MemoryLayout, MemorySlot};

    use super::*;

    #[test]
    fn what_devices_write_is_in_the_memory_and_in_the_log() {
        let slot = |gpa, pages: u64| MemorySlot { gpa: Gpa(gpa), length_bytes: pages * 4096 };
        // The second slot's frames do not begin at a word of the set.
        let layout = MemoryLayout::new(vec![slot(0, 70), slot(4 << 30, 200)]).unwrap();
        let ram = Ram::anonymous(layout.clone()).unwrap();
        let memory = DeviceMemory::over(&ram).unwrap();
        memory.map().write_slice(&[7; 4097], GuestAddress(4096 * 3)).unwrap();
        memory.map().write_obj(9_u32, GuestAddress((4 << 30) + 4096 * 100 + 8)).unwrap();
        let mut set = PageSet::empty(&layout);
        memory.take_dirty(&mut set);
        assert_eq!(set.indices().collect::<Vec<_>>(), [3, 4, 170]);
        set.clear();
        memory.take_dirty(&mut set);
        assert!(set.is_empty());
        assert_eq!(ram.map().read_obj::<u32>(GuestAddress((4 << 30) + 4096 * 100 + 8)).unwrap(), 9);
        drop(ram);
        assert_eq!(memory.map().read_obj::<u8>(GuestAddress(4096 * 4)).unwrap(), 7, "the mapping lives on");
    }
}
