//! A baseline: a model of clean checkpoints, and the assessment of other ones by it.

use std::collections::BTreeMap;

use linfa::DatasetBase;
use linfa::traits::Fit as _;
use ndarray::{Array1, Array2};
use retrovisor_snapshot::CheckpointId;

use crate::activity::{Activity, Profiles};
use crate::calibration::Calibration;
use crate::detector::{Baseline, Detector, Kind};
use crate::feature::{FEATURES, Vector};
use crate::sample::count_f64;
use crate::scale::{Moment, Scale};

/// What one checkpoint adds to a baseline.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) moment: Moment,
    pub(crate) vector: Vector,
    pub(crate) activity: Activity,
    /// Raw kernel counters: events per guest second, levels as they are.
    pub(crate) counters: BTreeMap<String, f64>,
}

/// The assessment of an observation by a model.
#[derive(Clone, Debug)]
pub(crate) struct Assessment {
    /// Signed robust standard deviations, one for each feature.
    pub(crate) deviations: Vec<f64>,
    /// The same, divided by how far the feature deviated in clean checkpoints: the evidence.
    pub(crate) evidence: Vec<f64>,
    /// The p-value of all detectors together.
    pub(crate) p_value: f64,
    /// Each detector's score and p-value.
    pub(crate) detectors: Vec<(&'static str, f64, f64)>,
}

/// A fitted baseline.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    scales: Vec<Option<Scale>>,
    /// The divisor of each feature's deviations: its largest deviation in held-out clean checkpoints divided by
    /// [`CLEAN_DEVIATION_MAX`], at least 1.
    noise: Vec<f64>,
    detectors: Vec<(Kind, Detector, Calibration)>,
    pub(crate) profiles: Profiles,
    pub(crate) checkpoints: usize,
}

/// A deviation of a clean checkpoint up to this many robust standard deviations does not make a feature noisy.
const CLEAN_DEVIATION_MAX: f64 = 4.0;
/// Bound on the parts of the baseline, each of which is evaluated by the rest.
const BLOCKS_MAX: usize = 10;

impl Model {
    pub(crate) fn fit(baseline: &[&Observation]) -> Self {
        let scales = fit_scales(baseline);
        let blocks = cut(baseline.len());
        // Every block of consecutive checkpoints is evaluated by scales, and then detectors, that were fitted to the
        // other blocks.
        let mut outside = Array2::zeros((baseline.len(), FEATURES.len()));
        let mut inside = Vec::new();
        for block in &blocks {
            let rest = without(baseline, block);
            let scales = fit_scales(&rest);
            for at in block.clone() {
                outside.row_mut(at).assign(&Array1::from(deviations(&scales, baseline[at])));
            }
            inside.push(matrix(&scales, &rest));
        }
        let noise: Vec<f64> = outside
            .columns()
            .into_iter()
            .map(|column| {
                column.iter().fold(CLEAN_DEVIATION_MAX, |most, z: &f64| most.max(z.abs()))
                    / CLEAN_DEVIATION_MAX
            })
            .collect();
        let normalized = |mut matrix: Array2<f64>| {
            for (mut column, noise) in matrix.columns_mut().into_iter().zip(&noise) {
                column /= *noise;
            }
            matrix
        };
        let outside = normalized(outside);
        let inside: Vec<Baseline> = inside.into_iter().map(normalized).map(DatasetBase::from).collect();
        let whole = DatasetBase::from(normalized(matrix(&scales, baseline)));
        let detectors = Kind::ALL
            .into_iter()
            .filter_map(|kind| {
                let mut scores = Vec::with_capacity(baseline.len());
                for (block, rest) in blocks.iter().zip(&inside) {
                    let detector = kind.fit(rest).ok()?;
                    scores.extend(block.clone().map(|at| detector.score(outside.row(at))));
                }
                Some((kind, kind.fit(&whole).ok()?, Calibration::fit(&scores)?))
            })
            .collect();
        let profiles = Profiles::learn(baseline.iter().map(|observation| &observation.activity));
        Self { scales, noise, detectors, profiles, checkpoints: baseline.len() }
    }

    pub(crate) fn assess(&self, observation: &Observation) -> Assessment {
        let deviations = deviations(&self.scales, observation);
        let evidence: Vec<f64> = deviations.iter().zip(&self.noise).map(|(z, noise)| z / noise).collect();
        let row = ndarray::ArrayView1::from(&evidence[..]);
        let detectors: Vec<_> = self
            .detectors
            .iter()
            .map(|(kind, detector, calibration)| {
                let score = detector.score(row);
                (kind.name(), score, calibration.p_value(score))
            })
            .collect();
        let least = detectors.iter().map(|(_, _, p)| *p).fold(1.0, f64::min);
        // Bonferroni correction: valid for any dependence between the detectors.
        let p_value = (least * count_f64(detectors.len().max(1))).min(1.0);
        Assessment { deviations, evidence, p_value, detectors }
    }

    pub(crate) fn scale(&self, feature: usize) -> Option<&Scale> {
        self.scales.get(feature)?.as_ref()
    }
}

fn fit_scales(baseline: &[&Observation]) -> Vec<Option<Scale>> {
    FEATURES
        .iter()
        .enumerate()
        .map(|(at, feature)| {
            let seen: Vec<_> =
                baseline.iter().filter_map(|o| Some((o.moment, (*o.vector.get(at)?)?))).collect();
            Scale::fit(*feature, &seen)
        })
        .collect()
}

/// An unknown value counts as no deviation.
fn deviations(scales: &[Option<Scale>], observation: &Observation) -> Vec<f64> {
    scales
        .iter()
        .zip(&observation.vector)
        .map(|(scale, raw)| match (scale, raw) {
            (Some(scale), Some(raw)) => scale.deviation(observation.moment, *raw),
            _ => 0.0,
        })
        .collect()
}

fn matrix(scales: &[Option<Scale>], rows: &[&Observation]) -> Array2<f64> {
    let mut matrix = Array2::zeros((rows.len(), scales.len()));
    for (mut row, observation) in matrix.rows_mut().into_iter().zip(rows) {
        row.assign(&Array1::from(deviations(scales, observation)));
    }
    matrix
}

/// Blocks of consecutive checkpoints, since those resemble each other.
fn cut(count: usize) -> Vec<std::ops::Range<usize>> {
    let length = count.div_ceil(BLOCKS_MAX).max(4);
    (0..count).step_by(length).map(|from| from..(from + length).min(count)).collect()
}

fn without<'a>(baseline: &[&'a Observation], block: &std::ops::Range<usize>) -> Vec<&'a Observation> {
    baseline.iter().enumerate().filter(|(at, _)| !block.contains(at)).map(|(_, o)| *o).collect()
}
