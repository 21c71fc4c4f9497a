//! How far long work is, for the eye only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::clean::clean;

/// `12 of 345 pages, 3 %`.
const TEMPLATE: &str = "{pos} of {len} {msg}, {percent} %";

/// A line on standard error that is removed when this is dropped. Nothing is shown where standard error is no terminal,
/// and beside JSON.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(json: bool) -> Self {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: ProgressBar::with_draw_target(None, target).with_style(style) }
    }

    /// Shows how much is done; nothing before the total is known.
    pub(crate) fn show(&self, done: u64, total: u64, what: &str) {
        if total > 0 {
            self.bar.set_length(total);
            self.bar.set_message(clean(what).into_owned());
            self.bar.set_position(done.min(total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
