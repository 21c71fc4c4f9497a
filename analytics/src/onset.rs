//! The onset: the checkpoint from which on the deviation persists.

/// How far a checkpoint deviates in the features that raised the alarm, in the alarm's direction.
///
/// `alarm` and `then` are robust deviations, one for each feature. The result is the mean over `leads`, each limited to
/// [`PART_MAX`], so that one outlying feature does not determine it.
pub(crate) fn likeness(alarm: &[f64], then: &[f64], leads: &[usize]) -> f64 {
    if leads.is_empty() {
        return 0.0;
    }
    let parts = leads.iter().map(|at| match (alarm.get(*at), then.get(*at)) {
        (Some(alarm), Some(then)) => (then * alarm.signum()).clamp(-PART_MAX, PART_MAX),
        _ => 0.0,
    });
    parts.sum::<f64>() / crate::sample::count_f64(leads.len())
}

const PART_MAX: f64 = 8.0;
/// The deviation between usual and anomalous checkpoints.
const BETWEEN: f64 = 2.5;

/// The start of the excursion that ends with the last value (the alarm): the position from which on the sum of
/// deviations above [`BETWEEN`] is largest, as in a CUSUM chart. `None` for no values.
pub(crate) fn onset(likeness: &[f64]) -> Option<usize> {
    let mut best = likeness.len().checked_sub(1)?;
    let (mut sum, mut most) = (0.0, f64::MIN);
    for (at, value) in likeness.iter().enumerate().rev() {
        sum += if value.is_finite() { value - BETWEEN } else { 0.0 };
        if sum > most {
            (best, most) = (at, sum);
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_excursion_may_have_a_gap_but_an_older_one_is_not_part_of_it() {
        assert_eq!(onset(&[0.0, 0.3, 6.0, 0.1, 0.2, 0.4, 5.0, 2.0, 7.0]), Some(6));
        assert_eq!(onset(&[0.0, 9.0]), Some(1));
        assert_eq!(onset(&[0.0, 0.0]), Some(1));
        assert_eq!(onset(&[]), None);
    }

    proptest! {
        #[test]
        fn a_step_is_found_where_it_is(before in prop::collection::vec(-1.5_f64..1.5, 0..40), after in prop::collection::vec(4.0_f64..8.0, 1..10)) {
            let all: Vec<f64> = before.iter().chain(&after).copied().collect();
            prop_assert_eq!(onset(&all), Some(before.len()));
        }
    }
}
