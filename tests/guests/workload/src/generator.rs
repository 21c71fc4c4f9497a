//! Pseudo-random numbers that follow from a seed (splitmix64), and a chained checksum made of its finaliser.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Generator {
    state: u64,
}

impl Generator {
    /// The stream of two words, such as a page's number and a tick.
    pub(crate) fn new(first: u64, second: u64) -> Self {
        Self { state: chain(chain(0, first), second) }
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        finalise(self.state)
    }
}

/// The checksum `sum` with `word` added; the order of the words counts.
pub(crate) fn chain(sum: u64, word: u64) -> u64 {
    finalise(sum.rotate_left(23).wrapping_add(STEP) ^ word)
}

fn finalise(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs of splitmix64 from seed 0, as published with its reference code.
    #[test]
    fn the_stream_is_splitmix64() {
        let mut generator = Generator { state: 0 };
        assert_eq!(generator.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(generator.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn the_order_of_words_counts() {
        assert_ne!(chain(chain(0, 1), 2), chain(chain(0, 2), 1));
    }
}
