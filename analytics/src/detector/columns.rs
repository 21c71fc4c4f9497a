//! The columns of a matrix of deviations that a detector uses, and the bounds of their values.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

/// The columns that vary in the baseline. Constant columns carry no information for these detectors.
pub(super) fn moving_columns(baseline: &Array2<f64>) -> Vec<usize> {
    if baseline.nrows() < 2 {
        return Vec::new();
    }
    baseline
        .columns()
        .into_iter()
        .enumerate()
        .filter(|(_, column)| column.iter().all(|z| z.is_finite()) && bounded(column.view()).var(0.0) > 1e-4)
        .map(|(index, _)| index)
        .collect()
}

/// Bound on a deviation of the baseline: outliers must not determine the whole model.
const BASELINE_DEVIATION_MAX: f64 = 4.0;
/// Bound on the weight of one feature among many, in robust standard deviations.
const DEVIATION_MAX: f64 = 50.0;

fn bounded(column: ArrayView1<'_, f64>) -> Array1<f64> {
    column.mapv(|z| z.clamp(-BASELINE_DEVIATION_MAX, BASELINE_DEVIATION_MAX))
}

/// The chosen columns of a baseline, with outliers clamped.
pub(super) fn clamped(baseline: ArrayView2<'_, f64>, columns: &[usize]) -> Array2<f64> {
    baseline.select(Axis(1), columns).mapv(|z| z.clamp(-BASELINE_DEVIATION_MAX, BASELINE_DEVIATION_MAX))
}

/// The chosen columns of one row. A value that is missing or not finite counts as no deviation.
pub(super) fn pick(deviations: ArrayView1<'_, f64>, columns: &[usize]) -> Array1<f64> {
    columns
        .iter()
        .map(|column| deviations.get(*column).copied().filter(|z| z.is_finite()).unwrap_or(0.0))
        .map(|z| z.clamp(-DEVIATION_MAX, DEVIATION_MAX))
        .collect()
}
