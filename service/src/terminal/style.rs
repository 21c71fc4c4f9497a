//! Words for quantities, and colour where the terminal has it.

use std::io::IsTerminal as _;

use retrovisor_proto::v1::Verdict;

/// `1.2 ms`, `850 µs`, `3.4 s`.
pub(crate) fn duration(us: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people's eyes")]
    let value = us as f64;
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", value / 1e3),
        _ => format!("{:.1} s", value / 1e6),
    }
}

/// `12 B`, `3.4 KiB`, `5.6 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people's eyes")]
    let mut value = bytes as f64;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    for unit in ["KiB", "MiB", "GiB"] {
        value /= 1024.0;
        if value < 1024.0 {
            return format!("{value:.1} {unit}");
        }
    }
    format!("{:.1} TiB", value / 1024.0)
}

/// How long ago: `now`, `12 s ago`, `3 min ago`.
pub(crate) fn ago(at_ms: i64) -> String {
    match retrovisor_snapshot::now_ms().saturating_sub(at_ms) / 1000 {
        ..2 => "now".to_owned(),
        seconds @ 2..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// `good`, `suspect`, `bad`, or `·` for what was not judged.
pub(crate) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Unspecified => "·",
        Verdict::Good => "good",
        Verdict::Suspect => "suspect",
        Verdict::Bad => "bad",
    }
}

/// Whether to use colour on standard output.
pub(crate) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `text` in the verdict's colour.
pub(crate) fn painted(verdict: Verdict, text: &str) -> String {
    let code = match verdict {
        Verdict::Unspecified => "2",
        Verdict::Good => "32",
        Verdict::Suspect => "33",
        Verdict::Bad => "31;1",
    };
    if colour() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// `text` in bold.
pub(crate) fn bold(text: &str) -> String {
    if colour() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// `text` without control characters: what a guest wrote must not drive the user's terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        assert_eq!([duration(999), duration(1_500), duration(2_340_000)], ["999 µs", "1.5 ms", "2.3 s"]);
        assert_eq!([bytes(1023), bytes(1024), bytes(5 << 20)], ["1023 B", "1.0 KiB", "5.0 MiB"]);
    }

    #[test]
    fn escape_sequences_of_a_guest_are_not_printed() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
