//! Arithmetic that keeps its values in the processor's extended registers for a while.

use crate::complaints::Complaints;

/// Numbers that go side by side.
const LANES: usize = 8;
/// Steps of one run: some milliseconds, in which the guest is stopped and taken back now and then.
const STEPS: u32 = 200_000;

/// Does the same twice and complains when it does not come out the same: then registers were lost on the way.
pub(crate) fn check(tick: u64, complaints: &mut Complaints) {
    let (first, second) = (run(tick), run(tick));
    for (lane, (first, second)) in first.iter().zip(&second).enumerate() {
        complaints.unless_equal(format_args!("lane {lane} of tick {tick}"), first, second);
    }
}

/// A chaotic map: one bit that is wrong at any time makes another result. Their bits.
fn run(tick: u64) -> [u64; LANES] {
    let start = f64::from(u16::try_from(tick % 1000).unwrap_or(0));
    let mut lanes: [f64; LANES] = std::array::from_fn(|lane| {
        let lane = f64::from(u8::try_from(lane).unwrap_or(0));
        (start + lane / 9.0 + 0.1) / 1010.0
    });
    for _ in 0..STEPS {
        for lane in &mut lanes {
            *lane = 3.999 * *lane * (1.0 - *lane);
        }
    }
    lanes.map(f64::to_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tick_is_another_result_and_the_same_tick_the_same() {
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let mut complaints = Complaints::default();
        check(7, &mut complaints);
        assert_eq!(complaints.count(), 0);
    }
}
