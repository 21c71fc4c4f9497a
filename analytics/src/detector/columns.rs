//! What a detector makes of a matrix of deviations before it looks at it.

use ndarray::{Array2, ArrayView1};

/// Features that moved at all in the baseline: constant ones tell these detectors nothing and blur the rest.
pub(super) fn moving_columns(baseline: &Array2<f64>) -> Vec<usize> {
    baseline
        .columns()
        .into_iter()
        .enumerate()
        .filter(|(_, column)| column.iter().all(|z| z.is_finite()) && column.var(0.0) > 1e-4)
        .map(|(index, _)| index)
        .collect()
}

/// A bound on one feature's say among many, in robust standard deviations.
const DEVIATION_MAX: f64 = 50.0;

/// The chosen columns, with wild values of the baseline drawn in so that they do not turn the whole model.
pub(super) fn drawn_in(baseline: &Array2<f64>, columns: &[usize]) -> Array2<f64> {
    baseline.select(ndarray::Axis(1), columns).mapv(|z| z.clamp(-4.0, 4.0))
}

pub(super) fn pick(deviations: ArrayView1<'_, f64>, columns: &[usize]) -> ndarray::Array1<f64> {
    columns
        .iter()
        .map(|column| deviations.get(*column).copied().filter(|z| z.is_finite()).unwrap_or(0.0))
        .map(|z| z.clamp(-DEVIATION_MAX, DEVIATION_MAX))
        .collect()
}
