use std::fmt;

use serde::{Deserialize, Serialize};

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a guest page. Huge pages are tracked and stored as their 4-KiB parts.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gpa(pub u64);

/// A guest frame number: a guest-physical address divided by the page size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gfn(pub u64);

impl Gpa {
    /// The frame that contains this address.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// Bytes from the start of the frame; always below [`PAGE_SIZE`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "masked to twelve bits")]
    pub const fn offset_in_page(self) -> usize {
        (self.0 & (PAGE_SIZE as u64 - 1)) as usize
    }

    /// The address `bytes` further on, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl Gfn {
    /// The first address of the frame. Frame numbers above 2^52 wrap: a layout never contains one.
    #[must_use]
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_splits_into_frame_and_offset() {
        let gpa = Gpa(0x1234_5678);
        assert_eq!(gpa.gfn(), Gfn(0x1_2345));
        assert_eq!(gpa.offset_in_page(), 0x678);
        assert_eq!(gpa.gfn().gpa(), Gpa(0x1234_5000));
        assert_eq!(Gpa(u64::MAX).checked_add(1), None);
    }
}
