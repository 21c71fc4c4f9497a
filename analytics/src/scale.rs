use crate::feature::{Direction, Feature, Shape};
use crate::order::{median, quantile, sorted, spread};
use crate::sample::count_f64;

/// Processor time that is used, or accounted, in one piece: a tick, a wake-up with its work.
pub(crate) const BURST_S: f64 = 0.03;
/// Events that occur together.
const CLUMP_EVENTS: f64 = 4.0;
/// Pages that are allocated or freed together.
const CLUMP_PAGES: f64 = 32.0;

/// The time and the interval of a value, which determine its noise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moment {
    /// Guest uptime, in seconds.
    pub(crate) uptime_s: f64,
    /// Guest time since the parent, in seconds; zero when unknown.
    pub(crate) interval_s: f64,
}

/// The usual value and the spread of one feature, on the feature's own scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    feature: Feature,
    center: f64,
    spread: f64,
    low: f64,
    high: f64,
    /// Drift over the baseline, per guest second.
    drift_per_s: f64,
    newest_s: f64,
}

impl Scale {
    /// Learns from raw values; `None` when too few are present.
    pub(crate) fn fit(feature: Feature, seen: &[(Moment, f64)]) -> Option<Self> {
        let seen: Vec<(Moment, f64)> = seen
            .iter()
            .filter(|(moment, raw)| moment.uptime_s.is_finite() && raw.is_finite())
            .copied()
            .collect();
        let in_time: Vec<(f64, f64)> =
            seen.iter().map(|(moment, raw)| (moment.uptime_s, feature.shape.apply(*raw))).collect();
        let values = sorted(in_time.iter().map(|(_, value)| *value));
        if values.len() < 4 {
            return None;
        }
        let mut scale = Self {
            feature,
            center: quantile(&values, 0.5)?,
            spread: feature.floor,
            low: *values.first()?,
            high: *values.last()?,
            drift_per_s: drift(&in_time),
            newest_s: in_time.iter().map(|(time, _)| *time).fold(f64::MIN, f64::max),
        };
        let residuals = sorted(seen.iter().map(|(moment, raw)| scale.residual(*moment, *raw)));
        // A spread learnt from few values is itself uncertain.
        let spread = spread(&residuals)? * (1.0 + 2.0 / count_f64(values.len()));
        scale.spread = spread.max(feature.floor);
        Some(scale)
    }

    /// The signed deviation in robust standard deviations. The spread is wider for short intervals, and for a drifting
    /// feature it grows with the time from the baseline.
    pub(crate) fn deviation(&self, moment: Moment, raw: f64) -> f64 {
        let residual = self.residual(moment, raw);
        if !(raw.is_finite() && residual.is_finite()) {
            return 0.0;
        }
        let ahead = self.drift_per_s * (moment.uptime_s - self.newest_s).max(0.0);
        let variance = self.spread.powi(2) + ahead.powi(2) + self.short_interval_variance(moment.interval_s);
        let deviation = residual / variance.sqrt();
        match self.feature.direction {
            Direction::Both => deviation,
            Direction::High => deviation.max(0.0),
            Direction::Recorded => 0.0,
        }
    }

    /// The distance from the usual value, on the feature's scale.
    fn residual(&self, moment: Moment, raw: f64) -> f64 {
        if self.feature.shape == Shape::Rate && moment.interval_s > 0.0 {
            // Counts are compared: in a short interval a few events more or less change the rate a lot.
            let expected = self.center.exp_m1().max(0.0) * moment.interval_s;
            return ((raw.max(0.0) * moment.interval_s + CLUMP_EVENTS) / (expected + CLUMP_EVENTS)).ln();
        }
        self.feature.shape.apply(raw) - self.center
    }

    /// The extra variance of a short interval, on the feature's scale.
    fn short_interval_variance(&self, interval_s: f64) -> f64 {
        if interval_s <= 0.0 {
            return 0.0;
        }
        match self.feature.shape {
            Shape::Linear | Shape::Log | Shape::Signed(_) => 0.0,
            Shape::Share => (BURST_S / interval_s).powi(2),
            // Events occur in clumps: twice the variance of a Poisson count, on the logarithmic scale.
            Shape::Rate => 2.0 / (2.0 + self.center.exp_m1().max(0.0) * interval_s),
            Shape::Change(unit) => (CLUMP_PAGES / interval_s / unit).powi(2),
        }
    }

    /// The raw range in the baseline.
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
    fn a_burst_of_work_in_a_short_interval_is_no_news() {
        let seen: Vec<_> = (0..20).map(|i| (at(i), 0.05)).collect();
        let scale = Scale::fit(named("top_task_cpu_share"), &seen).unwrap();
        let short = Moment { interval_s: 0.06, ..at(20) };
        assert!(scale.deviation(short, 0.5) < 2.0);
        assert!(scale.deviation(at(20), 0.95) > 8.0);
    }

    #[test]
    fn drift_widens_what_is_expected_later() {
        let seen: Vec<_> = (0..20).map(|i| (at(i), 1e4 * 1.05_f64.powf(f64::from(i)))).collect();
        let scale = Scale::fit(named("anon_pages"), &seen).unwrap();
        assert!(scale.deviation(at(40), 1e4 * 1.05_f64.powf(40.0)) < 4.0);
        assert!(scale.deviation(Moment::default(), f64::NAN).abs() < 1e-9);
    }
}
