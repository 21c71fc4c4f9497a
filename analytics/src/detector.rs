//! Ways to say how unlike the baseline a checkpoint is. None of them is best everywhere, so several vote.

mod columns;
mod neighbour;
mod principal;

use ndarray::{Array2, ArrayView1};

use self::neighbour::Neighbours;
use self::principal::Principal;

/// The detectors, by the names reports use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The largest robust deviation of any one feature.
    Extreme,
    /// Distance from the plane the baseline lies in, and along it (PCA).
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

    /// Learns from a matrix of deviations, a row a checkpoint. `None` when this detector cannot make anything of it.
    pub(crate) fn fit(self, baseline: &Array2<f64>) -> Option<Detector> {
        match self {
            Self::Extreme => Some(Detector::Extreme),
            Self::Principal => Principal::fit(baseline).map(Detector::Principal),
            Self::Neighbours => Neighbours::fit(baseline).map(Detector::Neighbours),
        }
    }
}

/// A detector that has learnt a baseline.
#[derive(Clone, Debug)]
pub(crate) enum Detector {
    Extreme,
    Principal(Principal),
    Neighbours(Neighbours),
}

impl Detector {
    /// How unlike the baseline these deviations are: zero or more, without unit, larger is stranger.
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
        // A fixed, well spread pattern; correlated through its second factor.
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            let common = (count_f64(i) * 0.9).sin();
            common + 0.3 * (count_f64(i * 31 + j * 17) * 1.7).sin()
        })
    }

    #[test]
    fn every_detector_ranks_a_far_point_above_a_near_one() {
        let baseline = cloud(24, 12);
        for kind in Kind::ALL {
            let detector = kind.fit(&baseline).unwrap();
            let near = detector.score(baseline.row(3));
            let mut far = baseline.row(3).to_owned();
            far[5] += 6.0;
            assert!(detector.score(far.view()) > near * 1.5, "{}", kind.name());
        }
    }

    #[test]
    fn a_break_of_correlation_shows_though_no_feature_is_extreme() {
        let baseline = cloud(60, 12);
        let principal = Kind::Principal.fit(&baseline).unwrap();
        let most = baseline.rows().into_iter().map(|row| principal.score(row)).fold(0.0, f64::max);
        let broken: ndarray::Array1<f64> = (0..12).map(|j| if j % 2 == 0 { 1.0 } else { -1.0 }).collect();
        assert!(principal.score(broken.view()) > 1.5 * most);
    }

    proptest! {
        #[test]
        fn no_baseline_and_no_point_make_a_detector_fail(
            rows in 0_usize..14, columns in 0_usize..9, rank in 0_usize..3, size in prop::sample::select(vec![0.0, 1e-12, 1.0, 1e6]),
            wild in prop::sample::select(vec![0.0, f64::NAN, f64::INFINITY, -1e300]),
        ) {
            let baseline = Array2::from_shape_fn((rows, columns), |(i, j)| match rank {
                0 => 1.0,
                1 => size * count_f64(i) * count_f64(j + 1),
                _ => size * count_f64(i * 7 + j * 3).sin(),
            });
            for kind in Kind::ALL {
                if let Some(detector) = kind.fit(&baseline) {
                    let point = ndarray::Array1::from_elem(columns, wild);
                    prop_assert!(!detector.score(point.view()).is_nan());
                }
            }
        }
    }
}
