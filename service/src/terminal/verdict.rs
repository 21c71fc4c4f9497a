//! Verdicts in words and colours.

use anstyle::{AnsiColor, Style};
use retrovisor_proto::v1::Verdict;

/// `good`, `suspect`, `bad` or `unknown`.
pub(crate) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Unspecified | Verdict::Unknown => "unknown",
        Verdict::Good => "good",
        Verdict::Suspect => "suspect",
        Verdict::Bad => "bad",
    }
}

/// How a line about such a checkpoint looks.
pub(crate) fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Unspecified | Verdict::Unknown => Style::new().dimmed(),
        Verdict::Good => AnsiColor::Green.on_default(),
        Verdict::Suspect => AnsiColor::Yellow.on_default(),
        Verdict::Bad => AnsiColor::Red.on_default().bold(),
    }
}
