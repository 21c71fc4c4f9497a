use crate::PAGE_SIZE;

/// The bytes of one guest page.
pub type Page = [u8; PAGE_SIZE];

/// A page of zeros.
pub static ZERO_PAGE: Page = [0; PAGE_SIZE];

/// The content of a frame. Zero and removed frames are states of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageContent<'a> {
    /// All bytes are zero.
    Zero,
    /// The guest gave the frame back (balloon, hot-unplug): it has no contents until it is used again.
    Removed,
    /// The bytes.
    Data(&'a Page),
}

impl PageContent<'_> {
    /// The bytes that are read from the frame. A removed frame reads as zeros.
    #[must_use]
    pub fn bytes(&self) -> &Page {
        match self {
            Self::Zero | Self::Removed => &ZERO_PAGE,
            Self::Data(page) => page,
        }
    }
}

/// Whether every byte is zero. Compares words, so that the compiler generates vector code.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    page.as_chunks::<64>().0.iter().all(|line| line.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Bytes of a line, the unit in which pages are compared.
pub const LINE_SIZE: usize = 64;

/// The lines in which two pages differ: bit `n` stands for the bytes from `64 * n` on.
#[must_use]
pub fn differing_lines(left: &Page, right: &Page) -> u64 {
    let lines = left.as_chunks::<LINE_SIZE>().0.iter().zip(right.as_chunks::<LINE_SIZE>().0);
    lines.enumerate().fold(0, |all, (at, (left, right))| {
        let any = left.iter().zip(right).fold(0, |any, (left, right)| any | (left ^ right));
        all | u64::from(any != 0) << at
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        assert!(is_zero(&ZERO_PAGE));
        for at in [0, 1, 63, 64, 2047, PAGE_SIZE - 1] {
            let mut page = ZERO_PAGE;
            page[at] = 1;
            assert!(!is_zero(&page), "byte {at}");
        }
    }

    #[test]
    fn lines_that_differ_are_named() {
        let mut page = ZERO_PAGE;
        for (at, lines) in [(0, 1), (63, 1), (64, 3), (PAGE_SIZE - 1, 3 | 1 << 63)] {
            page[at] = 0x80;
            assert_eq!(differing_lines(&page, &ZERO_PAGE), lines, "byte {at}");
            assert_eq!(differing_lines(&ZERO_PAGE, &page), lines, "byte {at}");
        }
        assert_eq!(differing_lines(&page, &page), 0);
    }
}
