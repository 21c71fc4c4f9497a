//! Order statistics (medians, quantiles), which a few outlying values do not change.

use crate::sample::count_f64;

/// The quantile `q` (0 to 1) of sorted values, interpolated.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = q.clamp(0.0, 1.0) * count_f64(last);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let below = (place.floor() as usize).min(last);
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    Some(low + (high - low) * (place - place.floor()))
}

/// The finite values in ascending order.
pub(crate) fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The median.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    quantile(&sorted(values), 0.5)
}

/// A robust standard deviation: a few outlying values do not change it, but a burst in one value of six does.
pub(crate) fn spread(sorted_values: &[f64]) -> Option<f64> {
    let center = quantile(sorted_values, 0.5)?;
    let deviation = median(sorted_values.iter().map(|value| (value - center).abs()))?;
    let range = quantile(sorted_values, 0.9)? - quantile(sorted_values, 0.1)?;
    // The factors make both equal to the standard deviation for a normal distribution.
    Some((1.4826 * deviation).max(range / 2.563))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_statistics_of_a_ramp() {
        let ramp = sorted((0..=100).map(f64::from));
        assert_eq!(quantile(&ramp, 0.5), Some(50.0));
        assert_eq!(quantile(&ramp, 0.905), Some(90.5));
        assert_eq!(median([3.0, f64::NAN, 1.0]), Some(2.0));
        assert_eq!(median([]), None);
    }

    #[test]
    fn one_wild_value_in_twenty_does_not_move_the_spread() {
        let tame = sorted((0..20).map(|i| f64::from(i % 5)));
        let mut wild = tame.clone();
        wild[19] = 1e9;
        assert!((spread(&wild).unwrap() / spread(&tame).unwrap() - 1.0).abs() < 0.3);
    }
}
