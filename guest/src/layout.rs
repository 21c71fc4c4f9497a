use serde::{Deserialize, Serialize};

use crate::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE};

/// A contiguous range of guest-physical memory that is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySlot {
    /// First address; page-aligned.
    pub gpa: Gpa,
    /// Length in bytes; a multiple of the page size, not zero.
    pub length_bytes: u64,
}

impl MemorySlot {
    /// Frames in the slot.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.length_bytes >> PAGE_SHIFT
    }

    /// First address past the slot.
    #[must_use]
    pub const fn end(&self) -> Gpa {
        Gpa(self.gpa.0 + self.length_bytes)
    }
}

/// All RAM of a machine: slots in ascending order with the holes between them (the PCI hole below 4 GiB).
///
/// Frames are also numbered without holes, 0 to `pages() - 1`: the *index*. Bitmaps and page maps use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<MemorySlot>", into = "Vec<MemorySlot>")]
pub struct MemoryLayout {
    slots: Vec<MemorySlot>,
}

/// Why a list of slots is not a valid layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No slot at all, or more RAM than [`MemoryLayout::PAGES_MAX`].
    #[error("a machine needs between one page and 16 TiB of memory")]
    Size,
    /// A slot is empty, not page-aligned, or runs past the physical address space.
    #[error("memory slot at {0} is empty, unaligned or too long")]
    Slot(Gpa),
    /// Slots overlap or are not in ascending order.
    #[error("memory slot at {0} overlaps the one before it or is out of order")]
    Order(Gpa),
}

impl MemoryLayout {
    /// Most frames a layout can hold (16 TiB).
    pub const PAGES_MAX: u64 = 1 << 32;
    /// Physical addresses on x86-64 have at most 52 bits.
    const GPA_END: u64 = 1 << 52;

    /// Checks the slots and makes a layout of them.
    pub fn new(slots: Vec<MemorySlot>) -> Result<Self, LayoutError> {
        let (mut end, mut pages) = (0, 0_u64);
        for slot in &slots {
            let aligned = (slot.gpa.0 | slot.length_bytes).is_multiple_of(PAGE_SIZE as u64);
            let last = slot.gpa.0.checked_add(slot.length_bytes).filter(|last| *last <= Self::GPA_END);
            let (true, Some(last)) = (aligned && slot.length_bytes > 0, last) else {
                return Err(LayoutError::Slot(slot.gpa));
            };
            if slot.gpa.0 < end {
                return Err(LayoutError::Order(slot.gpa));
            }
            end = last;
            pages += slot.pages();
        }
        if pages == 0 || pages > Self::PAGES_MAX {
            return Err(LayoutError::Size);
        }
        Ok(Self { slots })
    }

    /// One slot from address 0.
    pub fn flat(length_bytes: u64) -> Result<Self, LayoutError> {
        Self::new(vec![MemorySlot { gpa: Gpa(0), length_bytes }])
    }

    /// The slots, ascending.
    #[must_use]
    pub fn slots(&self) -> &[MemorySlot] {
        &self.slots
    }

    /// Frames in all slots.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.slots.iter().map(MemorySlot::pages).sum()
    }

    /// Bytes in all slots.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.length_bytes).sum()
    }

    /// The frame's number without holes, or `None` when the frame is not RAM.
    #[must_use]
    pub fn index(&self, gfn: Gfn) -> Option<u64> {
        let mut before = 0;
        for slot in &self.slots {
            let first = slot.gpa.gfn().0;
            if gfn.0 >= first && gfn.0 < first + slot.pages() {
                return Some(before + (gfn.0 - first));
            }
            before += slot.pages();
        }
        None
    }

    /// The frame at an index, or `None` past the end.
    #[must_use]
    pub fn gfn(&self, index: u64) -> Option<Gfn> {
        let mut rest = index;
        for slot in &self.slots {
            if rest < slot.pages() {
                return Some(Gfn(slot.gpa.gfn().0 + rest));
            }
            rest -= slot.pages();
        }
        None
    }

    /// Every frame, ascending.
    pub fn gfns(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.slots.iter().flat_map(|slot| {
            let first = slot.gpa.gfn().0;
            (first..first + slot.pages()).map(Gfn)
        })
    }
}

impl TryFrom<Vec<MemorySlot>> for MemoryLayout {
    type Error = LayoutError;

    fn try_from(slots: Vec<MemorySlot>) -> Result<Self, LayoutError> {
        Self::new(slots)
    }
}

impl From<MemoryLayout> for Vec<MemorySlot> {
    fn from(layout: MemoryLayout) -> Self {
        layout.slots
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(gpa: u64, length_bytes: u64) -> MemorySlot {
        MemorySlot { gpa: Gpa(gpa), length_bytes }
    }

    #[test]
    fn the_hole_below_four_gib_has_no_index() {
        let layout = MemoryLayout::new(vec![slot(0, 2 << 30), slot(4 << 30, 2 << 30)]).unwrap();
        assert_eq!(layout.index(Gpa(3 << 30).gfn()), None);
        assert_eq!(layout.index(Gpa(4 << 30).gfn()), Some((2 << 30) >> PAGE_SHIFT));
        assert_eq!(layout.gfn(layout.pages()), None);
    }

    #[test]
    fn bad_slots_are_refused() {
        assert_eq!(MemoryLayout::new(vec![]), Err(LayoutError::Size));
        assert_eq!(MemoryLayout::flat(0), Err(LayoutError::Slot(Gpa(0))));
        assert_eq!(MemoryLayout::flat(4097), Err(LayoutError::Slot(Gpa(0))));
        assert_eq!(
            MemoryLayout::new(vec![slot(0, 8192), slot(4096, 4096)]),
            Err(LayoutError::Order(Gpa(4096)))
        );
        assert_eq!(
            MemoryLayout::new(vec![slot(u64::MAX - 4095, 4096)]),
            Err(LayoutError::Slot(Gpa(u64::MAX - 4095)))
        );
    }

    proptest! {
        #[test]
        fn index_and_gfn_are_inverse(gaps in prop::collection::vec((0_u64..5, 1_u64..9), 1..6)) {
            let mut at = 0;
            let mut slots = Vec::new();
            for (gap, pages) in gaps {
                at += gap * 4096;
                slots.push(slot(at, pages * 4096));
                at += pages * 4096;
            }
            let layout = MemoryLayout::new(slots).unwrap();
            for (index, gfn) in layout.gfns().enumerate() {
                prop_assert_eq!(layout.index(gfn), Some(index as u64));
                prop_assert_eq!(layout.gfn(index as u64), Some(gfn));
            }
            prop_assert_eq!(layout.gfns().count() as u64, layout.pages());
        }
    }
}
