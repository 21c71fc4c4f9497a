//! Detectors: each scores how different a checkpoint is from the baseline. None is the best for all faults, so three
//! are combined.
//!
//! They implement linfa's [`Fit`], so that a model of linfa can replace one of them.

mod columns;
mod neighbour;
mod principal;

use linfa::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2, ArrayView1};

use self::neighbour::Neighbours;
use self::principal::Principal;

/// The detectors, by their names in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The largest robust deviation of any one feature.
    Extreme,
    /// Distance in and from the principal subspace of the baseline (PCA).
    Principal,
    /// Distance to the nearest checkpoints of the baseline.
    Neighbours,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Extreme, Self::Principal, Self::Neighbours];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Extreme => "extreme",
            Self::Principal => "principal",
            Self::Neighbours => "neighbours",
        }
    }
}

/// The rows of a baseline: robust deviations, one row for each checkpoint.
pub(crate) type Baseline = DatasetBase<Array2<f64>, Array1<()>>;

impl Fit<Array2<f64>, Array1<()>, linfa::Error> for Kind {
    type Object = Detector;

    /// Fails if the baseline has too few rows, or too few varying columns, for this detector.
    fn fit(&self, baseline: &Baseline) -> Result<Detector, linfa::Error> {
        let rows = &baseline.records;
        let fitted = match self {
            Self::Extreme => Some(Detector::Extreme),
            Self::Principal => Principal::fit(rows).map(Detector::Principal),
            Self::Neighbours => Neighbours::fit(rows).map(Detector::Neighbours),
        };
        fitted.ok_or(linfa::Error::NotEnoughSamples)
    }
}

/// A detector fitted to a baseline.
#[derive(Clone, Debug)]
pub(crate) enum Detector {
    Extreme,
    Principal(Principal),
    Neighbours(Neighbours),
}

impl Detector {
    /// The difference from the baseline: zero or more, without unit; larger is more different.
    pub(crate) fn score(&self, deviations: ArrayView1<'_, f64>) -> f64 {
        match self {
            Self::Extreme => deviations.iter().fold(0.0, |most, z| most.max(z.abs())),
            Self::Principal(principal) => principal.score(deviations),
            Self::Neighbours(neighbours) => neighbours.score(deviations),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::count_f64;

    fn cloud(rows: usize, columns: usize) -> Array2<f64> {
        // A fixed pattern with a wide spread; correlated through its second factor.
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            let common = (count_f64(i) * 0.9).sin();
            common + 0.3 * (count_f64(i * 31 + j * 17) * 1.7).sin()
        })
    }

    fn fit(kind: Kind, baseline: &Array2<f64>) -> Option<Detector> {
        kind.fit(&DatasetBase::from(baseline.clone())).ok()
    }

    #[test]
    fn every_detector_ranks_a_far_point_above_a_near_one() {
        let baseline = cloud(24, 12);
        for kind in Kind::ALL {
            let detector = fit(kind, &baseline).unwrap();
            let near = detector.score(baseline.row(3));
            let mut far = baseline.row(3).to_owned();
            far[5] += 6.0;
            assert!(detector.score(far.view()) > near * 1.5, "{}", kind.name());
        }
    }

    #[test]
    fn a_break_of_correlation_shows_though_no_feature_is_extreme() {
        let baseline = cloud(60, 12);
        let principal = fit(Kind::Principal, &baseline).unwrap();
        let most = baseline.rows().into_iter().map(|row| principal.score(row)).fold(0.0, f64::max);
        let broken: ndarray::Array1<f64> = (0..12).map(|j| if j % 2 == 0 { 1.0 } else { -1.0 }).collect();
        assert!(principal.score(broken.view()) > 1.5 * most);
    }

    /// A column of a baseline: constant, linear, nearly constant, spread, or with values that are not finite.
    fn column() -> impl Strategy<Value = (u8, f64)> {
        (0_u8..7, prop::sample::select(vec![0.0, 1e-12, 0.02, 1.0, 4.0, 1e6, 1e300, f64::NAN, f64::INFINITY]))
    }

    fn matrix(rows: usize, columns: &[(u8, f64)], seed: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns.len()), |(i, j)| {
            let (how, size) = columns[j];
            match how {
                0 => size,
                1 => size * count_f64(i),
                2 => size * count_f64(i % 2),
                3 if i + 1 == rows => size,
                3 => 0.0,
                // The same values in several columns: the covariance loses its rank.
                4 => size * (count_f64(i * 7 + seed)).sin(),
                _ => size * (count_f64(i * 7 + j * 3 + seed)).sin(),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_baseline_and_no_point_make_a_detector_fail(
            rows in prop_oneof![0_usize..14, Just(40), Just(90)],
            columns in prop_oneof![
                prop::collection::vec(column(), 0..9),
                prop::collection::vec(column(), 40..60),
                prop::collection::vec(column(), 300),
            ],
            seed in any::<u16>(),
            wild in prop::sample::select(vec![0.0, f64::NAN, f64::INFINITY, -1e300]),
        ) {
            let baseline = matrix(rows, &columns, seed.into());
            for kind in Kind::ALL {
                if let Some(detector) = fit(kind, &baseline) {
                    let point = ndarray::Array1::from_elem(columns.len(), wild);
                    prop_assert!(!detector.score(point.view()).is_nan());
                    for row in baseline.rows() {
                        prop_assert!(!detector.score(row).is_nan());
                    }
                }
            }
        }
    }
}
