//! The memory that is rewritten and checked.

use crate::complaints::Complaints;
use crate::generator::{Generator, chain};
use crate::page::{PAGE_BYTES, Page, expected_sum};

/// Pages of the buffer that one tick rewrites.
const WRITTEN_PAGES: u64 = 24;
/// Ticks in which every page is looked at once.
const PASS_TICKS: usize = 64;

/// A buffer whose contents follow from the tick.
pub(crate) struct Buffer {
    pages: Vec<Page>,
    /// The tick that last wrote each page.
    written_at: Vec<u64>,
    cursor: usize,
    sum: u64,
}

impl Buffer {
    /// A buffer of `memory_mib` MiB as tick 0 leaves it.
    pub(crate) fn new(memory_mib: usize) -> Self {
        let count = (memory_mib << 20) / PAGE_BYTES;
        let mut pages = vec![Page::zero(); count];
        for (number, page) in (0..).zip(&mut pages) {
            page.fill(number, 0);
        }
        Self { pages, written_at: vec![0; count], cursor: 0, sum: 0 }
    }

    /// Rewrites the pages that tick `tick` chooses, and chains what then stands in memory.
    pub(crate) fn write(&mut self, tick: u64) {
        let mut choice = Generator::new(u64::MAX, tick);
        let count = self.pages.len() as u64;
        for _ in 0..WRITTEN_PAGES {
            let number = choice.next() % count;
            // The remainder of a count that came from a usize fits one.
            let Ok(index) = usize::try_from(number) else { continue };
            self.pages[index].fill(number, tick);
            self.written_at[index] = tick;
            self.sum = chain(self.sum, self.pages[index].sum());
        }
    }

    /// Checks the next slice. A wrong page is named and put right, so that one fault is one complaint.
    pub(crate) fn check(&mut self, complaints: &mut Complaints) {
        for _ in 0..self.pages.len().div_ceil(PASS_TICKS) {
            let (index, number) = (self.cursor, self.cursor as u64);
            self.cursor = (self.cursor + 1) % self.pages.len();
            let page = &mut self.pages[index];
            let (expected, got) = (expected_sum(number, self.written_at[index]), page.sum());
            if expected != got {
                complaints.add(
                    format_args!("memory page {number} of tick {}", self.written_at[index]),
                    format_args!("{expected:016x}"),
                    format_args!("{got:016x}"),
                );
                page.fill(number, self.written_at[index]);
            }
        }
    }

    /// The checksum of all that was written, in its order.
    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(buffer: &mut Buffer, ticks: std::ops::RangeInclusive<u64>) -> u64 {
        let mut complaints = Complaints::default();
        for tick in ticks {
            buffer.write(tick);
            buffer.check(&mut complaints);
        }
        complaints.count()
    }

    #[test]
    fn the_sum_follows_from_the_tick() {
        let (mut one, mut other) = (Buffer::new(1), Buffer::new(1));
        assert_eq!(run(&mut one, 1..=200) + run(&mut other, 1..=200), 0);
        assert_eq!(one.sum(), other.sum());
        run(&mut one, 201..=201);
        assert_ne!(one.sum(), other.sum());
    }

    #[test]
    fn every_flipped_page_is_found_once_within_a_pass() {
        let mut buffer = Buffer::new(1);
        assert_eq!(run(&mut buffer, 1..=10), 0);
        let mut complaints = Complaints::default();
        for index in [0, 100, 255] {
            buffer.pages[index].0[2000] ^= 4;
        }
        for _ in 0..2 * PASS_TICKS {
            buffer.check(&mut complaints);
        }
        assert_eq!(complaints.count(), 3);
    }
}
