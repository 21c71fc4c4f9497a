//! The clocks that a program sees.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::complaints::Complaints;

/// What the wall clock may gain or lose against the monotonic one from one look to the next: nobody sets it here.
const DRIFT_MAX: Duration = Duration::from_secs(1);

/// What the clocks said last.
pub(crate) struct Clocks {
    began: Instant,
    wall: Duration,
    monotonic: Duration,
}

impl Clocks {
    /// Looks for the first time.
    pub(crate) fn now() -> Self {
        Self { began: Instant::now(), wall: wall(), monotonic: Duration::ZERO }
    }

    /// Looks again, after a sleep of `slept`: no clock may go back, none may have run less than that, and both must have
    /// gone the same way.
    pub(crate) fn check(&mut self, slept: Duration, complaints: &mut Complaints) {
        let (wall, monotonic) = (wall(), self.began.elapsed());
        let passed = monotonic.saturating_sub(self.monotonic);
        if passed < slept {
            complaints.add(
                "sleep",
                format_args!("{} us at least", slept.as_micros()),
                format_args!("{} us", passed.as_micros()),
            );
        }
        let of_wall = wall.saturating_sub(self.wall);
        if of_wall.abs_diff(passed) > DRIFT_MAX {
            complaints.add(
                "wall clock",
                format_args!("{} us more", passed.as_micros()),
                format_args!("{} us", of_wall.as_micros()),
            );
        }
        (self.wall, self.monotonic) = (wall, monotonic);
    }

    /// Prints both, in milliseconds: the wall clock since 1970, the monotonic one since the start.
    pub(crate) fn tell(&self) {
        println!("clock wall {} monotonic {}", self.wall.as_millis(), self.monotonic.as_millis());
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_stood_still_and_one_that_jumped_are_noticed() {
        let mut complaints = Complaints::default();
        let mut clocks = Clocks::now();
        std::thread::sleep(Duration::from_millis(2));
        clocks.check(Duration::from_millis(2), &mut complaints);
        assert_eq!(complaints.count(), 0);
        clocks.check(Duration::from_secs(5), &mut complaints);
        assert_eq!(complaints.count(), 1, "it cannot have slept that long");
        clocks.wall -= Duration::from_secs(5);
        clocks.check(Duration::ZERO, &mut complaints);
        assert_eq!(complaints.count(), 2);
    }
}
