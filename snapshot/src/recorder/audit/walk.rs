/// A repeated walk through all frames of a machine, or all parts of a disk, in an order that cannot be predicted without
/// its seed.
///
/// The order is a permutation, so that each is visited once in each round: a Feistel network over the next even number
/// of bits, whose results that are no index are permuted again until they are one. It takes no memory.
pub(super) struct Walk {
    length: u64,
    seed: u64,
    half_bits: u32,
}

impl Walk {
    /// A walk through the indices below `length`.
    pub(super) fn new(length: u64, seed: u64) -> Self {
        let bits = u64::BITS - length.saturating_sub(1).leading_zeros();
        Self { length: length.max(1), seed, half_bits: bits.div_ceil(2).max(1) }
    }

    /// Positions in a round.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The index at a position of the walk. Positions continue after the end of a round.
    pub(super) fn index(&self, position: u64) -> u64 {
        let mut index = position % self.length;
        loop {
            index = self.permute(index);
            if index < self.length {
                return index;
            }
        }
    }

    /// The position of an index in the first round.
    pub(super) fn position(&self, index: u64) -> u64 {
        let mut position = index % self.length;
        loop {
            position = self.permute_back(position);
            if position < self.length {
                return position;
            }
        }
    }

    fn permute_back(&self, index: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (index >> self.half_bits, index & mask);
        for step in (1..=4).rev() {
            (left, right) = (right ^ self.mixed(left, step) & mask, left);
        }
        left << self.half_bits | right
    }

    fn mixed(&self, half: u64, step: u64) -> u64 {
        mix(half ^ mix(self.seed ^ step))
    }

    fn permute(&self, index: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (index >> self.half_bits, index & mask);
        for step in 1..=4 {
            (left, right) = (right, left ^ (self.mixed(right, step) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finalizer of `SplitMix64`.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_round_visits_every_index_once(length in 1_u64..3_000, seed: u64, round in 0_u64..3) {
            let walk = Walk::new(length, seed);
            let mut seen = vec![false; usize::try_from(length).unwrap()];
            for position in 0..length {
                let index = walk.index(round * length + position);
                prop_assert_eq!(walk.position(index), position);
                prop_assert!(!std::mem::replace(&mut seen[usize::try_from(index).unwrap()], true));
            }
        }
    }

    #[test]
    fn large_memories_are_covered_and_orders_depend_on_the_seed() {
        let frames = (1 << 18) + 1;
        let walk = Walk::new(frames, 1);
        let mut seen = vec![false; usize::try_from(frames).unwrap()];
        (0..frames).for_each(|position| seen[usize::try_from(walk.index(position)).unwrap()] = true);
        assert!(seen.iter().all(|seen| *seen));
        let other = Walk::new(frames, 2);
        let same = (0..1_000).filter(|position| walk.index(*position) == other.index(*position)).count();
        let in_a_row = (0..1_000).filter(|at| walk.index(at + 1) == walk.index(*at) + 1).count();
        assert!(same < 10 && in_a_row < 10, "{same} {in_a_row}");
    }
}
