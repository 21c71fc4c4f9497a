//! Which kernel variable or object points to a frame that no other source names.

use retrovisor_guest::Gfn;

use crate::{hash::IntegerMap, probe::Probe};

/// The pointer found for each frame, by the frame's index.
#[derive(Default)]
pub(super) struct Referrers {
    of: IntegerMap<u32, Referrer>,
}

/// Where a pointer to a frame was found: the index of the frame that holds it, and the offset in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Referrer {
    pub(super) holder: u32,
    pub(super) offset: u16,
}

/// Bound on the frames that are searched for pointers: 256 MiB.
const HOLDERS_MAX: usize = 1 << 16;
/// The direct map covers all of memory; a pointer into it is its base plus a physical address.
const PAGE: u64 = 4096;

/// Converts a word that may be a pointer to the frame that it points to.
struct Target {
    direct: u64,
    descriptors: u64,
    descriptor_bytes: u64,
    bytes: u64,
}

impl Target {
    fn of(probe: &Probe, end: u64) -> Option<Self> {
        let direct = probe.word("page_offset_base")?;
        let descriptors = probe.word("vmemmap_base")?;
        let descriptor_bytes = probe.types.size_of("page").filter(|size| *size >= 8)?;
        Some(Self { direct, descriptors, descriptor_bytes, bytes: end.checked_mul(PAGE)? })
    }

    fn frame(&self, word: u64) -> Option<Gfn> {
        let direct = word.wrapping_sub(self.direct);
        if direct < self.bytes {
            return Some(Gfn(direct / PAGE));
        }
        let descriptor = word.wrapping_sub(self.descriptors);
        let number = descriptor / self.descriptor_bytes;
        (number < self.bytes / PAGE && descriptor.is_multiple_of(self.descriptor_bytes))
            .then_some(Gfn(number))
    }
}

impl Referrers {
    /// Searches the holders, in order of preference, for pointers to wanted frames.
    pub(super) fn find(
        probe: &Probe,
        end: u64,
        holders: impl Iterator<Item = (u32, Gfn)>,
        wanted: &dyn Fn(Gfn) -> Option<u32>,
    ) -> Option<Self> {
        let target = Target::of(probe, end)?;
        let mut found = Self::default();
        for (holder, gfn) in holders.take(HOLDERS_MAX) {
            if probe.reader.pages().view().known_zero(gfn) {
                continue;
            }
            let Some(page) = probe.reader.pages().frame(gfn) else { continue };
            for (offset, word) in (0_u16..).step_by(8).zip(page.as_chunks::<8>().0) {
                let word = u64::from_le_bytes(*word);
                // All kernel pointers are in the upper half: this rules out most words at once.
                if word >> 60 != 0xf {
                    continue;
                }
                let Some(index) = target.frame(word).and_then(wanted) else { continue };
                if index != holder {
                    found.of.entry(index).or_insert(Referrer { holder, offset });
                }
            }
        }
        Some(found)
    }

    pub(super) fn get(&self, index: u32) -> Option<Referrer> {
        self.of.get(&index).copied()
    }

    /// Gives a frame the pointer of the block that it is a part of.
    pub(super) fn share(&mut self, part: u32, of: u32) {
        if let Some(referrer) = self.get(of) {
            self.of.insert(part, referrer);
        }
    }
}
