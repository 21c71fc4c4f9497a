use linfa_nn::distance::{Distance, L2Dist};
use linfa_nn::{LinearSearch, NearestNeighbour};
use ndarray::{Array2, ArrayView1};

use super::columns::{clamped, moving_columns, pick};
use crate::sample::count_f64;

/// The points of the baseline; the score is the distance to the nearest ones. This also works for guests with several
/// modes of operation.
#[derive(Clone, Debug)]
pub(crate) struct Neighbours {
    columns: Vec<usize>,
    points: Array2<f64>,
}

impl Neighbours {
    const NEAREST: usize = 3;

    pub(super) fn fit(baseline: &Array2<f64>) -> Option<Self> {
        let columns = moving_columns(baseline);
        if columns.is_empty() || baseline.nrows() < Self::NEAREST {
            return None;
        }
        Some(Self { points: clamped(baseline.view(), &columns), columns })
    }

    /// Mean distance to the nearest three points, per feature.
    pub(super) fn score(&self, deviations: ArrayView1<'_, f64>) -> f64 {
        let point = pick(deviations, &self.columns);
        // With this many dimensions a tree visits every point too; the linear search needs no construction.
        let Ok(index) = LinearSearch.from_batch(&self.points, L2Dist) else { return 0.0 };
        let Ok(nearest) = index.k_nearest(point.view(), Self::NEAREST) else { return 0.0 };
        let total: f64 = nearest.iter().map(|(found, _)| L2Dist.distance(point.view(), found.view())).sum();
        total / count_f64(nearest.len().max(1)) / count_f64(self.columns.len()).sqrt()
    }
}
