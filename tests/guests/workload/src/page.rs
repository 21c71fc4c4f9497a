//! One page whose contents follow from its number and the tick that wrote it.

use crate::generator::{Generator, chain};

/// Bytes in a page, on the disk as in memory.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A page, aligned as direct disk input and output needs it.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u8; PAGE_BYTES]);

impl Page {
    /// A page of zeros.
    pub(crate) fn zero() -> Self {
        Self([0; PAGE_BYTES])
    }

    /// Writes what tick `tick` puts into page `number`.
    ///
    /// The two words stand in front, so that a person who looks at a page sees what it is.
    pub(crate) fn fill(&mut self, number: u64, tick: u64) {
        let mut words = self.0.as_chunks_mut::<8>().0.iter_mut();
        // The array leads: a zip that ends by its second half has already taken a word from the first.
        for (value, word) in [number, tick].into_iter().zip(words.by_ref()) {
            *word = value.to_le_bytes();
        }
        let mut generator = Generator::new(number, tick);
        for word in words {
            *word = generator.next().to_le_bytes();
        }
    }

    /// The checksum of all words.
    pub(crate) fn sum(&self) -> u64 {
        self.0.as_chunks::<8>().0.iter().fold(0, |sum, word| chain(sum, u64::from_le_bytes(*word)))
    }

    /// The tick that the page says it was written at.
    pub(crate) fn tick(&self) -> u64 {
        self.0.as_chunks::<8>().0.get(1).map_or(0, |word| u64::from_le_bytes(*word))
    }
}

/// The checksum of what tick `tick` puts into page `number`.
pub(crate) fn expected_sum(number: u64, tick: u64) -> u64 {
    let mut page = Page::zero();
    page.fill(number, tick);
    page.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_follows_from_number_and_tick() {
        let mut page = Page::zero();
        page.fill(3, 41);
        assert_eq!((page.sum(), page.tick()), (expected_sum(3, 41), 41));
        assert_ne!(page.sum(), expected_sum(3, 42));
        assert_ne!(page.sum(), expected_sum(4, 41));
    }

    #[test]
    fn every_word_is_written() {
        let (mut over_zeros, mut over_ones) = (Page::zero(), Page([0xff; PAGE_BYTES]));
        over_zeros.fill(3, 41);
        over_ones.fill(3, 41);
        assert_eq!(over_zeros.0, over_ones.0);
    }

    #[test]
    fn any_flipped_bit_changes_the_sum() {
        let mut page = Page::zero();
        page.fill(7, 7);
        let right = page.sum();
        for bit in (0..PAGE_BYTES * 8).step_by(101) {
            page.0[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(page.sum(), right, "bit {bit}");
            page.0[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
