/// A repeated walk through all frames of a machine, in an order that cannot be predicted without its seed.
///
/// The order is a permutation, so that every frame is visited once in each round: a Feistel network over the next even
/// number of bits, whose results that are no frame are permuted again until they are one. It takes no memory.
pub(super) struct FrameWalk {
    frames: u64,
    seed: u64,
    half_bits: u32,
}

impl FrameWalk {
    /// A walk through the frames of indices below `frames`.
    pub(super) fn new(frames: u64, seed: u64) -> Self {
        let bits = u64::BITS - frames.saturating_sub(1).leading_zeros();
        Self { frames: frames.max(1), seed, half_bits: bits.div_ceil(2).max(1) }
    }

    /// The index of the frame at a position of the walk. Positions continue after the end of a round.
    pub(super) fn frame(&self, position: u64) -> u64 {
        let mut index = position % self.frames;
        loop {
            index = self.permute(index);
            if index < self.frames {
                return index;
            }
        }
    }

    fn permute(&self, index: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (index >> self.half_bits, index & mask);
        for step in 1..=4 {
            (left, right) = (right, left ^ (mix(right ^ mix(self.seed ^ step)) & mask));
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
        fn a_round_visits_every_frame_once(frames in 1_u64..3_000, seed: u64, round in 0_u64..3) {
            let walk = FrameWalk::new(frames, seed);
            let mut seen = vec![false; usize::try_from(frames).unwrap()];
            for position in 0..frames {
                let frame = usize::try_from(walk.frame(round * frames + position)).unwrap();
                prop_assert!(!std::mem::replace(&mut seen[frame], true));
            }
        }
    }

    #[test]
    fn large_memories_are_covered_and_orders_depend_on_the_seed() {
        let frames = (1 << 18) + 1;
        let walk = FrameWalk::new(frames, 1);
        let mut seen = vec![false; usize::try_from(frames).unwrap()];
        (0..frames).for_each(|position| seen[usize::try_from(walk.frame(position)).unwrap()] = true);
        assert!(seen.iter().all(|seen| *seen));
        let other = FrameWalk::new(frames, 2);
        let same = (0..1_000).filter(|position| walk.frame(*position) == other.frame(*position)).count();
        let in_a_row = (0..1_000).filter(|at| walk.frame(at + 1) == walk.frame(*at) + 1).count();
        assert!(same < 10 && in_a_row < 10, "{same} {in_a_row}");
    }
}
