//! What the workload found wrong with itself.

use std::fmt::Display;

/// Prints complaints and counts them.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    count: u64,
}

impl Complaints {
    /// Says that `what` ought to be `expected` and was `got`.
    pub(crate) fn add(&mut self, what: impl Display, expected: impl Display, got: impl Display) {
        self.count += 1;
        println!("CORRUPT {what} expected {expected} got {got}");
    }

    /// Complains unless the two are equal.
    pub(crate) fn unless_equal<T: PartialEq + Display>(&mut self, what: impl Display, expected: &T, got: &T) {
        if expected != got {
            self.add(what, expected, got);
        }
    }

    /// Complaints so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}
