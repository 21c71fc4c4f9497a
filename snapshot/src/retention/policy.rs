use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// Which checkpoints stay. A checkpoint stays when any rule keeps it. Always kept, whatever the policy says: each
/// machine's current checkpoint, its newest one, pinned ones, the last good one, and what an operation in progress
/// needs.
///
/// Rules by age count periods that have a checkpoint, newest first, in UTC; of each period the newest checkpoint that
/// without the verdict bad stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionPolicy {
    /// The newest checkpoints of each machine, over all its timelines.
    pub keep_last: u64,
    /// One for each of this many hours.
    pub keep_hourly: u64,
    /// One for each of this many days.
    pub keep_daily: u64,
    /// One for each of this many weeks, which begin on Mondays.
    pub keep_weekly: u64,
    /// One for each of this many months.
    pub keep_monthly: u64,
    /// Checkpoints with a label.
    pub keep_labelled: bool,
    /// For this many days: bad checkpoints, and the first bad and last good ones of incidents. `None`: without limit.
    /// They are the last to be removed in any case.
    pub keep_bad_days: Option<u64>,
    /// Checkpoints that undo and redo need, for this many operations back.
    pub undo_depth: u64,
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self {
            keep_last: 200,
            keep_hourly: 24,
            keep_daily: 7,
            keep_weekly: 4,
            keep_monthly: 6,
            keep_labelled: true,
            keep_bad_days: None,
            undo_depth: 10,
        }
    }
}

impl RetentionPolicy {
    /// Keeps only what every policy keeps.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            keep_last: 0,
            keep_hourly: 0,
            keep_daily: 0,
            keep_weekly: 0,
            keep_monthly: 0,
            keep_labelled: false,
            keep_bad_days: Some(0),
            undo_depth: 0,
        }
    }
}

/// A period of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Period {
    Hour,
    Day,
    Week,
    Month,
}

impl Period {
    /// The number of the period of an instant: milliseconds since 1970 UTC.
    pub(super) fn number(self, at_ms: i64) -> i64 {
        const HOUR_MS: i64 = 3_600_000;
        let day = at_ms.div_euclid(24 * HOUR_MS);
        match self {
            Self::Hour => at_ms.div_euclid(HOUR_MS),
            Self::Day => day,
            // Day 0 was a Thursday.
            Self::Week => (day + 3).div_euclid(7),
            Self::Month => month(at_ms),
        }
    }
}

/// Months since the year 0, of an instant; those beyond the calendar count as its last or first month.
fn month(at_ms: i64) -> i64 {
    let limit = if at_ms < 0 { Timestamp::MIN } else { Timestamp::MAX };
    let date = Timestamp::from_millisecond(at_ms).unwrap_or(limit).to_zoned(TimeZone::UTC).date();
    i64::from(date.year()) * 12 + i64::from(date.month())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    #[test]
    fn months_have_their_lengths() {
        // 2024: a leap year.
        let first = (2024 - 1970) * 365 + 13;
        let mut day = first;
        let mut number = Period::Month.number(day * DAY_MS);
        for length in [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            assert_eq!(Period::Month.number((day + length - 1) * DAY_MS), number);
            day += length;
            number += 1;
            assert_eq!(Period::Month.number(day * DAY_MS), number);
        }
    }

    #[test]
    fn weeks_begin_on_mondays() {
        // 2024-01-01 was a Monday.
        let monday = (2024 - 1970) * 365 + 13;
        let week = |day: i64| Period::Week.number(day * DAY_MS);
        assert_eq!(week(monday - 1) + 1, week(monday));
        assert_eq!(week(monday + 6), week(monday));
        assert_eq!(week(monday + 7), week(monday) + 1);
    }

    #[test]
    fn a_policy_is_plain_data() {
        let policy: RetentionPolicy =
            serde_json::from_str(r#"{ "keep_last": 5, "keep_bad_days": 30 }"#).unwrap();
        assert_eq!((policy.keep_last, policy.keep_bad_days, policy.keep_daily), (5, Some(30), 7));
        assert!(serde_json::from_str::<RetentionPolicy>(r#"{ "keep_lost": 5 }"#).is_err());
    }
}
