//! Which variables and objects point to blocks of the page allocator that no other source names.

use retrovisor_guest::{Gfn, MemoryView};

use super::{
    map::{OwnerMap, Slot},
    referrers::Referrers,
};
use crate::{pages::Pages, probe::Probe, reader::Reader};

impl OwnerMap {
    /// Finds the kernel variable or object that points to each frame without a known use, by a search for pointers in
    /// the kernel's memory. It reads much more than the map itself: call it only when such frames matter.
    pub fn trace_allocations(&mut self, view: &dyn MemoryView) {
        let kernel = self.kernel.clone();
        let pages = Pages::new(view);
        let reader = Reader::new(&pages, kernel.address_space());
        let Some(probe) = Probe::new(&kernel, &reader) else { return };
        // Variables are preferred as names, then objects, then other memory.
        let rank = |slot: &Slot| match slot {
            Slot::Kernel { virt } => (!kernel.text().contains(virt)).then_some(0),
            Slot::PerCpu { .. } => Some(1),
            Slot::Module { .. } => Some(2),
            Slot::Slab { .. } => Some(3),
            Slot::Vmalloc { .. } => Some(4),
            Slot::Allocated | Slot::Reserved => Some(5),
            _ => None,
        };
        let mut holders: Vec<(u8, u32, Gfn)> = (0_u32..)
            .zip(self.layout.gfns().zip(&self.slots))
            .filter_map(|(index, (gfn, slot))| Some((rank(slot)?, index, gfn)))
            .collect();
        holders.sort_unstable();
        let end = self.layout.gfns().last().map_or(0, |last| last.0 + 1);
        let wanted = |gfn: Gfn| {
            let index = self.index(gfn)?;
            matches!(self.slots.get(index), Some(Slot::Allocated | Slot::Reserved))
                .then(|| u32::try_from(index).ok())?
        };
        let holders = holders.into_iter().map(|(_, index, gfn)| (index, gfn));
        let Some(mut found) = Referrers::find(&probe, end, holders, &wanted) else { return };
        self.extend_to_blocks(&mut found);
        self.referrers = found;
    }

    /// Extends the result from one frame to its whole block. With descriptors that record the block, a pointer to any
    /// part of it names all parts. Otherwise a block of the allocator is taken to be aligned to its size, and memory
    /// taken at boot to extend to the next such block.
    fn extend_to_blocks(&self, found: &mut Referrers) {
        for (part, head) in &self.parts {
            if found.get(*head).is_none() {
                found.share(*head, *part);
            }
        }
        for (part, head) in &self.parts {
            if found.get(*part).is_none() {
                found.share(*part, *head);
            }
        }
        let is_variable = |found: &Referrers, index: u32| {
            let holder = found.get(index).and_then(|referrer| self.slots.get(referrer.holder as usize));
            matches!(holder, Some(Slot::Kernel { .. } | Slot::PerCpu { .. }))
        };
        // Blocks that may continue, the most recently begun last: a pointer into the middle of one does not end it.
        let mut heads: Vec<(u32, u64, bool)> = Vec::new();
        for (index, (gfn, slot)) in (0_u32..).zip(self.layout.gfns().zip(&self.slots)) {
            let reserved = matches!(slot, Slot::Reserved);
            if !reserved && !matches!(slot, Slot::Allocated) {
                heads.clear();
                continue;
            }
            while heads.last().is_some_and(|(_, first, boot)| {
                let aligned = 1_u64 << first.trailing_zeros().min(10);
                *boot != reserved || (!*boot && gfn.0 - first >= aligned)
            }) {
                heads.pop();
            }
            let known = found.get(index).is_some();
            match heads.last() {
                // Objects point back into the tables that a variable points to: the variable is the better name.
                Some((of, ..)) if !known || (reserved && !is_variable(found, index)) => {
                    found.share(index, *of);
                }
                _ if known => heads.push((index, gfn.0, reserved)),
                _ => {}
            }
        }
    }
}
