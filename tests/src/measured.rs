use std::path::Path;

use serde_json::json;

/// Figures of one benchmark run: rows of a name, a unit, p50, p99 and the number of samples.
#[derive(Default)]
pub struct Measured {
    rows: Vec<(String, &'static str, Vec<f64>)>,
}

impl Measured {
    /// Adds one sample to the row of that name.
    pub fn add(&mut self, name: &str, unit: &'static str, sample: f64) {
        match self.rows.iter_mut().find(|(known, _, _)| known == name) {
            Some((_, _, samples)) => samples.push(sample),
            None => self.rows.push((name.to_owned(), unit, vec![sample])),
        }
    }

    /// Adds a duration in microseconds to a row in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "durations of a benchmark fit in 52 bits")]
    pub fn add_us(&mut self, name: &str, sample_us: u64) {
        self.add(name, "ms", sample_us as f64 / 1000.0);
    }

    /// The median of a row.
    #[must_use]
    pub fn p50(&self, name: &str) -> f64 {
        self.rows
            .iter()
            .find(|(known, _, _)| known == name)
            .map_or(f64::NAN, |(_, _, samples)| quantile(samples, 0.5))
    }

    /// Prints the table and writes the rows to `target/bench/FILE.json` of the workspace.
    pub fn finish(&self, file: &str) -> std::io::Result<()> {
        println!("\n{:<34} {:>8} {:>12} {:>12} {:>5}", "name", "unit", "p50", "p99", "n");
        let mut rows = Vec::new();
        for (name, unit, samples) in &self.rows {
            let (p50, p99) = (quantile(samples, 0.5), quantile(samples, 0.99));
            println!("{name:<34} {unit:>8} {p50:>12.2} {p99:>12.2} {:>5}", samples.len());
            rows.push(json!({ "name": name, "unit": unit, "p50": p50, "p99": p99, "n": samples.len() }));
        }
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("{file}.json")), serde_json::to_string_pretty(&rows)?)
    }
}

/// The sample at that fraction of the sorted samples, rounded up: p99 of few samples is the largest.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a fraction of a small count"
)]
fn quantile(samples: &[f64], fraction: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * fraction).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        assert!((quantile(&[3.0, 1.0, 2.0], 0.5) - 2.0).abs() < f64::EPSILON);
        assert!((quantile(&[3.0, 1.0, 2.0], 0.99) - 3.0).abs() < f64::EPSILON);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
