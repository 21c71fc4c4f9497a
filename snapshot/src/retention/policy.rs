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
    /// One for each of so many hours.
    pub keep_hourly: u64,
    /// One for each of so many days.
    pub keep_daily: u64,
    /// One for each of so many weeks, which begin on Mondays.
    pub keep_weekly: u64,
    /// One for each of so many months.
    pub keep_monthly: u64,
    /// Checkpoints with a label.
    pub keep_labelled: bool,
    /// For so many days: bad checkpoints, and the first bad and last good ones of incidents. None: for ever. They are
    /// the last to go in any case.
    pub keep_bad_days: Option<u64>,
    /// Checkpoints that undo and redo need, for so many operations back.
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
    /// Keeps nothing but what every policy keeps.
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
            Self::Month => month(day),
        }
    }
}

/// Months since March of the year 0, of a day since 1970 (the civil calendar, after Howard Hinnant).
fn month(day: i64) -> i64 {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    (era * 400 + year_of_era) * 12 + (5 * day_of_year + 2) / 153
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
