//! Numbers formatted for people.

/// Three significant digits at most, with a suffix for thousands.
pub(crate) fn short(number: f64) -> String {
    if !number.is_finite() {
        return "?".to_owned();
    }
    let size = number.abs();
    match size {
        _ if size >= 1e12 => format!("{number:.1e}"),
        _ if size >= 1e9 => trimmed(number / 1e9, size / 1e9) + " G",
        _ if size >= 1e6 => trimmed(number / 1e6, size / 1e6) + " M",
        _ if size >= 1e4 => trimmed(number / 1e3, size / 1e3) + " k",
        _ => trimmed(number, size),
    }
}

fn trimmed(number: f64, size: f64) -> String {
    let text = match size {
        _ if size >= 100.0 => format!("{number:.0}"),
        _ if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A range; one number if both ends are formatted alike.
pub(crate) fn range(low: f64, high: f64) -> String {
    let (low, high) = (short(low), short(high));
    if low == high { low } else { format!("{low} to {high}") }
}

/// A p-value.
pub(crate) fn probability(p: f64) -> String {
    if p >= 0.001 { trimmed_probability(p) } else { format!("{p:.0e}") }
}

fn trimmed_probability(p: f64) -> String {
    format!("{p:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (-0.001, "0"),
            (0.123_4, "0.12"),
            (12.34, "12.3"),
            (1234.5, "1234"),
            (98_765.0, "98.8 k"),
            (5e6, "5 M"),
            (100.0, "100"),
            (f64::NAN, "?"),
        ] {
            assert_eq!(short(number), text);
        }
        assert_eq!(probability(0.05), "0.05");
        assert_eq!(probability(1e-7), "1e-7");
    }
}
