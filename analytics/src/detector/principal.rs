use linfa::DatasetBase;
use linfa::traits::Fit;
use linfa_reduction::Pca;
use ndarray::{Array1, Array2, ArrayView1, Axis};

use super::columns::{drawn_in, moving_columns, pick};
use crate::sample::count_f64;

/// The plane in which the baseline varies most, with the spread along it and off it.
///
/// The score is a Mahalanobis distance under a shrunk covariance: what the few checkpoints of a baseline can tell of
/// the strongest directions is believed, and all others get one common variance (probabilistic PCA). It is the sum of
/// Hotelling's T² in the plane and the squared residual off it, each in its own variance, per feature.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    columns: Vec<usize>,
    mean: Array1<f64>,
    /// A row a direction, each of length one.
    directions: Array2<f64>,
    variances: Array1<f64>,
    residual_variance: f64,
}

impl Principal {
    /// Most directions ever kept.
    const DIRECTIONS_MAX: usize = 5;
    /// Share of the covariance that is replaced by its average: eigenvalues of few samples are too far apart.
    const SHRINKAGE: f64 = 0.2;
    /// Variance below which a direction is numerical dust.
    const VARIANCE_MIN: f64 = 1e-3;

    pub(super) fn fit(baseline: &Array2<f64>) -> Option<Self> {
        let columns = moving_columns(baseline);
        let (rows, width) = (baseline.nrows(), columns.len());
        // The solver behind linfa's PCA is unsafe for nearly all directions of a small matrix: ask for few.
        let wanted = (rows.min(width) / 5).min(Self::DIRECTIONS_MAX);
        if wanted == 0 {
            return None;
        }
        let matrix = drawn_in(baseline, &columns);
        let samples = count_f64(rows - 1);
        let mean = matrix.mean_axis(Axis(0))?;
        let total_variance: f64 = matrix.var_axis(Axis(0), 1.0).sum();
        let pca = Pca::params(wanted).fit(&DatasetBase::from(matrix)).ok()?;
        // `explained_variance()` divides by the number of directions less one; the variance needs the samples.
        let raw = pca.singular_values().mapv(|sigma| sigma * sigma / samples);
        let kept: Vec<usize> = (0..raw.len()).filter(|i| raw[*i] > Self::VARIANCE_MIN).collect();
        if kept.is_empty() || !total_variance.is_finite() {
            return None;
        }
        let mut directions = pca.components().select(Axis(0), &kept);
        for mut direction in directions.rows_mut() {
            let length = direction.dot(&direction).sqrt();
            if !(length.is_finite() && length > 0.0) {
                return None;
            }
            direction /= length;
        }
        let average = total_variance / count_f64(width);
        let shrink = |variance: f64| (1.0 - Self::SHRINKAGE) * variance + Self::SHRINKAGE * average;
        let explained: f64 = kept.iter().map(|i| raw[*i]).sum();
        let left = count_f64(width.saturating_sub(kept.len()).max(1));
        let residual = ((total_variance - explained) / left).max(0.0);
        Some(Self {
            variances: kept.iter().map(|i| shrink(raw[*i])).collect(),
            residual_variance: shrink(residual).max(Self::VARIANCE_MIN),
            columns,
            mean,
            directions,
        })
    }

    pub(super) fn score(&self, deviations: ArrayView1<'_, f64>) -> f64 {
        let centered = pick(deviations, &self.columns) - &self.mean;
        let along = self.directions.dot(&centered);
        let t_squared: f64 = along.iter().zip(&self.variances).map(|(y, variance)| y * y / variance).sum();
        let off = (centered.dot(&centered) - along.dot(&along)).max(0.0);
        ((t_squared + off / self.residual_variance) / count_f64(self.columns.len())).sqrt()
    }
}
