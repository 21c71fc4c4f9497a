use nalgebra::{DMatrix, SymmetricEigen};
use ndarray::{Array1, Array2, ArrayView1, Axis};

use super::columns::{clamped, moving_columns, pick};
use crate::sample::count_f64;

/// The subspace in which the baseline varies most, with the variance in it and outside it.
///
/// The score is a Mahalanobis distance under a shrunk covariance: the strongest directions keep their own variance, all
/// others share one (probabilistic PCA). It is the sum of Hotelling's T² in the plane and the squared residual off it,
/// each divided by its variance, per feature.
///
/// The directions are eigenvectors of the covariance matrix, computed by a dense symmetric solver (tridiagonalisation
/// and QR steps). With fewer rows than columns the Gram matrix of the rows is decomposed in its place: it has the same
/// nonzero eigenvalues, so the cost is bounded by the smaller side.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    columns: Vec<usize>,
    mean: Array1<f64>,
    /// One unit vector in each row.
    directions: Array2<f64>,
    variances: Array1<f64>,
    residual_variance: f64,
}

/// An eigenvalue and its eigenvector of unit length.
type Direction = (f64, Array1<f64>);

impl Principal {
    /// Bound on the directions that are kept.
    const DIRECTIONS_MAX: usize = 5;
    /// Values per direction: a direction estimated from fewer rows or columns is noise.
    const VALUES_PER_DIRECTION: usize = 5;
    /// Bound on the decomposed rows, the newest ones: the time grows with the third power of the smaller side.
    const ROWS_MAX: usize = 512;
    /// Weight of the average in the covariance: the eigenvalues of few samples are too far apart.
    const SHRINKAGE: f64 = 0.2;
    /// Directions with a smaller variance are rounding errors.
    const VARIANCE_MIN: f64 = 1e-3;

    pub(super) fn fit(baseline: &Array2<f64>) -> Option<Self> {
        let columns = moving_columns(baseline);
        let older = baseline.nrows().saturating_sub(Self::ROWS_MAX);
        let (_, newest) = baseline.view().split_at(Axis(0), older);
        let (rows, width) = (newest.nrows(), columns.len());
        let wanted = (rows.min(width) / Self::VALUES_PER_DIRECTION).min(Self::DIRECTIONS_MAX);
        if wanted == 0 {
            return None;
        }
        let mut matrix = clamped(newest, &columns);
        let mean = matrix.mean_axis(Axis(0))?;
        let total_variance: f64 = matrix.var_axis(Axis(0), 1.0).sum();
        matrix -= &mean;
        let kept = directions(&matrix, wanted)?;
        if kept.is_empty() || !total_variance.is_finite() {
            return None;
        }
        let average = total_variance / count_f64(width);
        let shrink = |variance: f64| (1.0 - Self::SHRINKAGE) * variance + Self::SHRINKAGE * average;
        let explained: f64 = kept.iter().map(|(variance, _)| variance).sum();
        let left = count_f64(width.saturating_sub(kept.len()).max(1));
        let residual = ((total_variance - explained) / left).max(0.0);
        let rows: Vec<_> = kept.iter().map(|(_, direction)| direction.view()).collect();
        Some(Self {
            variances: kept.iter().map(|(variance, _)| shrink(*variance)).collect(),
            residual_variance: shrink(residual).max(Self::VARIANCE_MIN),
            columns,
            mean,
            directions: ndarray::stack(Axis(0), &rows).ok()?,
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

/// The strongest directions of a centered matrix, at most `wanted`. `None` where the solver does not converge.
fn directions(centered: &Array2<f64>, wanted: usize) -> Option<Vec<Direction>> {
    let rows_are_fewer = centered.nrows() < centered.ncols();
    let samples = count_f64(centered.nrows().checked_sub(1)?.max(1));
    let product =
        if rows_are_fewer { centered.dot(&centered.t()) } else { centered.t().dot(centered) } / samples;
    if !product.iter().all(|entry| entry.is_finite()) {
        return None;
    }
    let side = product.nrows();
    let symmetric = DMatrix::from_fn(side, side, |row, column| product[[row, column]]);
    let steps_max = 64 * side;
    let solved = SymmetricEigen::try_new(symmetric, f64::EPSILON, steps_max)?;
    let mut found: Vec<Direction> = solved
        .eigenvalues
        .iter()
        .zip(solved.eigenvectors.column_iter())
        .filter(|(variance, _)| variance.is_finite() && **variance > Principal::VARIANCE_MIN)
        .filter_map(|(variance, vector)| {
            let vector: Array1<f64> = vector.iter().copied().collect();
            let direction = if rows_are_fewer { centered.t().dot(&vector) } else { vector };
            let length = direction.dot(&direction).sqrt();
            (length.is_finite() && length > 0.0).then(|| (*variance, direction / length))
        })
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.truncate(wanted);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of two known directions: the diagonal of the first pair of columns, and the third column alone.
    fn two_directions(rows: usize, width: usize) -> Array2<f64> {
        let mut matrix = Array2::from_shape_fn((rows, width), |(row, column)| {
            let (a, b) = ((count_f64(row) * 2.1).sin(), (count_f64(row) * 0.7).cos());
            match column {
                0 | 1 => 3.0 * a,
                2 => b,
                _ => 0.0,
            }
        });
        let mean = matrix.mean_axis(Axis(0)).unwrap();
        matrix -= &mean;
        matrix
    }

    #[test]
    fn the_known_directions_are_found_from_either_side() {
        for (rows, width) in [(40, 8), (8, 40)] {
            let matrix = two_directions(rows, width);
            let found = directions(&matrix, 2).unwrap();
            assert_eq!(found.len(), 2);
            let (strongest, second) = (&found[0], &found[1]);
            assert!(strongest.0 > second.0);
            assert!((strongest.1[0].abs() - 0.5_f64.sqrt()).abs() < 0.05, "{:?}", strongest.1);
            assert!((strongest.1[0] - strongest.1[1]).abs() < 1e-9);
            assert!(second.1[2].abs() > 0.95, "{:?}", second.1);
            let along = matrix.dot(&strongest.1);
            assert!((along.dot(&along) / count_f64(rows - 1) - strongest.0).abs() < 1e-9);
        }
    }

    #[test]
    fn many_features_and_many_rows_take_bounded_time() {
        let wide = two_directions(30, 4000);
        assert!(Principal::fit(&wide).is_none(), "three columns move: too few for a direction");
        let noisy = Array2::from_shape_fn((30, 4000), |(row, column)| {
            (count_f64(row * row * 7 + row * column + column * 13) * 1.3).sin()
        });
        let fitted = Principal::fit(&noisy).unwrap();
        assert_eq!(fitted.directions.nrows(), Principal::DIRECTIONS_MAX);
        assert!(fitted.score(noisy.row(0)).is_finite());
        let long = Array2::from_shape_fn((5000, 40), |(row, column)| {
            (count_f64(row * row * 7 + row * column + column * 13) * 1.3).sin()
        });
        assert!(Principal::fit(&long).is_some());
    }
}
