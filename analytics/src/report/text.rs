//! The text in a report. Much of it is from the guest, and may be hostile.

/// Text without characters that change the direction of writing or are invisible, which could make one name look like
/// another. HTML is not escaped here, but where the page is made.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '\t' | '\n' => ' ',
            letter if letter.is_control() || is_deceptive(letter) => '\u{fffd}',
            letter => letter,
        })
        .collect()
}

/// Like [`shown`], with HTML's special characters escaped: for the charts, which are not made by maud.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in shown(text).chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            letter => safe.push(letter),
        }
    }
    safe
}

/// Whether a character is invisible or changes the direction of writing.
fn is_deceptive(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
    )
}

/// A time in UTC, to the second.
pub(super) fn utc(at_ms: i64) -> String {
    let seconds = at_ms.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Days since 1970 as a date of the Gregorian calendar, counted in eras of 400 years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moments() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_399_999), "2000-02-28 23:59:59");
        assert_eq!(utc(951_868_800_000), "2000-03-01 00:00:00");
        assert_eq!(utc(-1), "1969-12-31 23:59:59");
    }

    proptest! {
        #[test]
        fn nothing_with_a_meaning_is_left(text in "\\PC*|[<>&\"'\u{202e}\u{200b}\u{0}-\u{1f}a-z]*") {
            let safe = escape(&text);
            let forbidden = ['<', '>', '"', '\'', '\u{202e}', '\u{200b}', '\u{0}', '\u{1b}'];
            prop_assert!(!safe.contains(forbidden));
        }
    }
}
