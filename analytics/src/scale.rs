use crate::feature::{Direction, Feature, Shape};
use crate::order::{median, quantile, sorted, spread};
use crate::sample::count_f64;

/// Where and when a value was seen: what its noise depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moment {
    /// Guest uptime, in seconds.
    pub(crate) uptime_s: f64,
    /// Guest time since the checkpoint before, in seconds; zero when not known.
    pub(crate) interval_s: f64,
}

/// The usual place and spread of one feature, on the feature's own scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    feature: Feature,
    center: f64,
    spread: f64,
    low: f64,
    high: f64,
    /// Drift seen over the baseline, per guest second.
    drift_per_s: f64,
    newest_s: f64,
}

impl Scale {
    /// Learns from raw values; `None` when the feature was hardly ever there.
    pub(crate) fn fit(feature: Feature, seen: &[(Moment, f64)]) -> Option<Self> {
        let scaled: Vec<(f64, f64)> = seen
            .iter()
            .filter(|(_, raw)| raw.is_finite())
            .map(|(moment, raw)| (moment.uptime_s, feature.shape.apply(*raw)))
            .filter(|(time, value)| time.is_finite() && value.is_finite())
            .collect();
        let values = sorted(scaled.iter().map(|(_, value)| *value));
        if values.len() < 4 {
            return None;
        }
        let center = quantile(&values, 0.5)?;
        // A spread learnt from few values is itself uncertain.
        let spread = spread(&values)? * (1.0 + 2.0 / count_f64(values.len()));
        Some(Self {
            feature,
            center,
            spread: spread.max(feature.floor),
            low: *values.first()?,
            high: *values.last()?,
            drift_per_s: drift(&scaled),
            newest_s: scaled.iter().map(|(time, _)| *time).fold(f64::MIN, f64::max),
        })
    }

    /// Robust standard deviations from the usual, signed. Wider where the interval was short, and further
    /// from the baseline in time when the feature was drifting.
    pub(crate) fn deviation(&self, moment: Moment, raw: f64) -> f64 {
        let value = self.feature.shape.apply(raw);
        if !(raw.is_finite() && value.is_finite()) {
            return 0.0;
        }
        let ahead = self.drift_per_s * (moment.uptime_s - self.newest_s).max(0.0);
        let mut variance = self.spread * self.spread + ahead * ahead;
        if self.feature.shape == Shape::Rate {
            // Events come in clumps: twice the variance of a Poisson count, on the logarithmic scale.
            let expected = self.center.exp_m1().max(0.0) * moment.interval_s;
            variance += 2.0 / (2.0 + expected);
        }
        let deviation = (value - self.center) / variance.sqrt();
        match self.feature.direction {
            Direction::Both => deviation,
            Direction::High => deviation.max(0.0),
        }
    }

    /// The raw range seen in the baseline.
    pub(crate) fn range(&self) -> (f64, f64) {
        (self.feature.shape.undo(self.low), self.feature.shape.undo(self.high))
    }
}

/// The slope between the medians of the earlier and the later half.
fn drift(scaled: &[(f64, f64)]) -> f64 {
    let mut by_time = scaled.to_vec();
    by_time.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (early, late) = by_time.split_at(by_time.len() / 2);
    let middle = |half: &[(f64, f64)]| {
        Some((median(half.iter().map(|(time, _)| *time))?, median(half.iter().map(|(_, value)| *value))?))
    };
    let (Some((t0, v0)), Some((t1, v1))) = (middle(early), middle(late)) else { return 0.0 };
    if t1 - t0 > 1e-3 { (v1 - v0) / (t1 - t0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::{FEATURES, position};

    fn named(name: &str) -> Feature {
        FEATURES[position(name).unwrap()]
    }

    fn at(second: u32) -> Moment {
        Moment { uptime_s: second.into(), interval_s: 1.0 }
    }

    #[test]
    fn a_constant_feature_tolerates_jitter_and_sees_a_jump() {
        let seen: Vec<_> = (0..20).map(|i| (at(i), 30.0)).collect();
        let scale = Scale::fit(named("tasks"), &seen).unwrap();
        assert!(scale.deviation(at(20), 31.0).abs() < 1.0);
        assert!(scale.deviation(at(20), 60.0) > 10.0);
    }

    #[test]
    fn short_intervals_and_rare_events_are_noisy() {
        let seen: Vec<_> = (0..20).map(|i| (at(i), 2.0)).collect();
        let scale = Scale::fit(named("forks_per_s"), &seen).unwrap();
        let short = Moment { interval_s: 0.1, ..at(20) };
        assert!(scale.deviation(short, 20.0) < scale.deviation(at(20), 20.0));
    }

    #[test]
    fn drift_widens_what_is_expected_later() {
        let seen: Vec<_> = (0..20).map(|i| (at(i), 1e4 * 1.05_f64.powf(f64::from(i)))).collect();
        let scale = Scale::fit(named("anon_pages"), &seen).unwrap();
        assert!(scale.deviation(at(40), 1e4 * 1.05_f64.powf(40.0)) < 4.0);
        assert!(scale.deviation(Moment::default(), f64::NAN).abs() < 1e-9);
    }
}
