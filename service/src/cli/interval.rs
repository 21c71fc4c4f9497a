//! The interval between automatic checkpoints, as people write it.

use std::time::Duration;

use jiff::fmt::friendly::SpanParser;
use retrovisor_manager::INTERVAL_MIN_MS;
use retrovisor_proto::v1::Machine;

use crate::terminal::paragraph;

const INTERVAL_MIN: Duration = Duration::from_millis(INTERVAL_MIN_MS as u64);

/// What the API can say.
const INTERVAL_MAX: Duration = Duration::from_hours(24 * 49);

/// `200ms`, `0.5s`, `1m30s`, `0`.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let interval = SpanParser::new().parse_unsigned_duration(text).map_err(|_| {
        format!("`{text}` is not an interval: write 200ms, 0.5s, 2s, 1m or 1h, or 0 for none")
    })?;
    if interval > INTERVAL_MAX {
        Err("an interval is at most 49 days; 0 means no automatic checkpoints".to_owned())
    } else if interval.is_zero() || interval >= INTERVAL_MIN {
        Ok(interval)
    } else {
        Err(format!("an interval below {} ms leaves the guest no time to run", INTERVAL_MIN.as_millis()))
    }
}

/// Milliseconds.
pub(super) fn interval_ms(interval: Duration) -> u32 {
    u32::try_from(interval.as_millis()).unwrap_or(u32::MAX)
}

/// Says what does not happen without an interval.
pub(super) fn warn_if_none(machine: &Machine) {
    if machine.every_ms == 0 {
        paragraph::print(&format!(
            "There are no automatic checkpoints: nothing detects anomalies, and there is nothing newer to go back to than \
             what `retrovisor checkpoint {0}` takes. Set an interval: retrovisor set {0} --every 1s",
            machine.name
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_and_nonsense_is_refused() {
        let ms = |text: &str| parse_interval(text).map(|interval| interval.as_millis());
        for (text, expected) in
            [("200ms", 200), ("0.5s", 500), ("1m30s", 90_000), ("1 min", 60_000), ("1h", 3_600_000), ("0", 0)]
        {
            assert_eq!(ms(text), Ok(expected), "{text}");
        }
        for wrong in ["", "5", "1ms", "s", "3 parsecs", "-1s", "1s ago", "100000h"] {
            assert!(ms(wrong).is_err(), "{wrong}");
        }
        assert_eq!(interval_ms(Duration::MAX), u32::MAX);
    }
}
