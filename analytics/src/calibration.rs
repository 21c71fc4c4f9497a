use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::order::{median, sorted, spread};
use crate::sample::count_f64;

/// The scores of one detector for clean checkpoints that it was not fitted to, from which a new score gets a p-value.
///
/// Up to the largest clean score the p-value is conformal: the share of clean scores at least as large, under the
/// assumption that blocks are exchangeable. Counting ends at `1/(n+1)`. Larger scores continue from there with a
/// Student t distribution of the logarithm of the score. That part is an extrapolation, and depends on the assumed
/// shape; its degrees of freedom are few when the scores are few or autocorrelated.
#[derive(Clone, Debug)]
pub(crate) struct Calibration {
    clean: Vec<f64>,
    center: f64,
    spread: f64,
    tail: StudentsT,
}

/// Scores are compared as ratios; smaller ones count as this.
const SCORE_MIN: f64 = 0.05;
/// Smallest standard deviation of the logarithm of a score that is used: a factor of 1.22.
const SPREAD_MIN: f64 = 0.2;

impl Calibration {
    /// Learns from scores in the order of time. `None` for fewer than four.
    pub(crate) fn fit(in_time: &[f64]) -> Option<Self> {
        let logs: Vec<f64> =
            in_time.iter().filter(|score| score.is_finite()).map(|score| score.max(SCORE_MIN).ln()).collect();
        if logs.len() < 4 {
            return None;
        }
        let clean = sorted(logs.iter().copied());
        let center = median(clean.iter().copied())?;
        let independent = independent_count(&logs);
        Some(Self {
            spread: spread(&clean)?.max(SPREAD_MIN) * (1.0 + 1.0 / independent).sqrt(),
            tail: StudentsT::new(0.0, 1.0, (independent - 1.0).clamp(4.0, 60.0)).ok()?,
            center,
            clean,
        })
    }

    /// The probability that a clean checkpoint has at least this score. The type's documentation says where it is
    /// extrapolated.
    pub(crate) fn p_value(&self, score: f64) -> f64 {
        if score.is_nan() {
            return 1.0;
        }
        let log = score.clamp(SCORE_MIN, 1e12).ln();
        let as_large = count_f64(self.clean.iter().filter(|clean| **clean >= log).count());
        let counted = (1.0 + as_large) / (1.0 + count_f64(self.clean.len()));
        match self.clean.last() {
            Some(largest) if log > *largest => {
                let beyond = self.survival(log) / self.survival(*largest).max(f64::MIN_POSITIVE);
                counted * beyond.clamp(0.0, 1.0)
            }
            _ => counted,
        }
    }

    fn survival(&self, log: f64) -> f64 {
        self.tail.sf((log - self.center) / self.spread)
    }
}

/// The effective number of independent values, from the correlation of each with the one before.
fn independent_count(in_time: &[f64]) -> f64 {
    let count = count_f64(in_time.len());
    let mean = in_time.iter().sum::<f64>() / count;
    let variance: f64 = in_time.iter().map(|x| (x - mean).powi(2)).sum();
    let covariance: f64 = in_time.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
    let likeness = if variance > 1e-12 { (covariance / variance).clamp(0.0, 0.8) } else { 0.0 };
    (count * (1.0 - likeness) / (1.0 + likeness)).max(2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_up_to_the_largest_and_falls_on_beyond_it() {
        let scores: Vec<f64> = (1..=19).map(|i| 1.0 + f64::from((i * 7) % 19) / 19.0).collect();
        let calibration = Calibration::fit(&scores).unwrap();
        assert!((calibration.p_value(0.1) - 1.0).abs() < 1e-9);
        assert!((calibration.p_value(2.0 - 1.0 / 19.0) - 0.1).abs() < 0.06);
        assert!(calibration.p_value(2.1) <= 0.05);
        assert!(calibration.p_value(40.0) < 1e-5);
        assert!(Calibration::fit(&[1.0, 2.0]).is_none());
    }

    proptest! {
        #[test]
        fn p_is_a_probability_and_falls_with_the_score(
            scores in prop::collection::vec(prop::num::f64::ANY, 4..40),
            a in prop::num::f64::ANY, b in prop::num::f64::ANY,
        ) {
            if let Some(calibration) = Calibration::fit(&scores) {
                let (p, q) = (calibration.p_value(a.min(b)), calibration.p_value(a.max(b)));
                prop_assert!((0.0..=1.0).contains(&p) && (0.0..=1.0).contains(&q));
                prop_assert!(a.is_nan() || b.is_nan() || q <= p + 1e-12);
            }
        }
    }
}
