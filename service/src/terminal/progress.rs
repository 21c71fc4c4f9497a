//! How far long work is, for the eye only.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

/// A line on standard error that is written over and goes when it is dropped; nothing where no terminal is, and
/// nothing beside JSON.
pub(crate) struct Progress {
    live: bool,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(json: bool) -> Self {
        Self { live: std::io::stderr().is_terminal() && !json, shown: false }
    }

    /// `12 of 345 pages, 3 %`; nothing before the total is known.
    pub(crate) fn show(&mut self, done: u64, total: u64, what: impl Display) {
        if self.live && total > 0 {
            eprint!("\r\x1b[K{done} of {total} {what}, {} %", done.saturating_mul(100) / total);
            // A terminal that went away changes nothing.
            let _ = std::io::stderr().flush();
            self.shown = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
