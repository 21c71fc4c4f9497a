//! Words for quantities.

use jiff::{SignedDuration, Timestamp};
use retrovisor_snapshot::now_ms;

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

/// A host time, in milliseconds since 1970, to the second: `2026-01-31T12:00:00Z`.
pub(crate) fn instant(at_ms: i64) -> String {
    Timestamp::from_second(at_ms / 1_000).map_or_else(|_| "unknown".to_owned(), |instant| instant.to_string())
}

/// How long ago a host time is, in milliseconds since 1970: `now`, `12 s ago`, `3 min ago`.
pub(crate) fn ago(at_ms: i64) -> String {
    age(SignedDuration::from_millis(now_ms().saturating_sub(at_ms)))
}

fn age(age: SignedDuration) -> String {
    match age.as_secs() {
        ..2 => "now".to_owned(),
        seconds @ 2..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", age.as_mins()),
        7_200..172_800 => format!("{} h ago", age.as_hours()),
        _ => format!("{} days ago", age.as_hours() / 24),
    }
}

/// `3 checkpoints`, `1 checkpoint`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        assert_eq!([duration(999), duration(1_500), duration(2_340_000)], ["999 µs", "1.5 ms", "2.3 s"]);
        assert_eq!([bytes(1023), bytes(1024), bytes(5 << 20)], ["1023 B", "1.0 KiB", "5.0 MiB"]);
        let ages = [-5, 1, 119, 7_199, 172_799, 172_800].map(|s| age(SignedDuration::from_secs(s)));
        assert_eq!(ages, ["now", "now", "119 s ago", "119 min ago", "47 h ago", "2 days ago"]);
        assert_eq!([count(1, "page"), count(0, "page")], ["1 page", "0 pages"]);
    }
}
