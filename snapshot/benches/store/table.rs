//! The rows.

use std::fmt::Write as _;
use std::path::PathBuf;

#[derive(Default)]
pub(crate) struct Table(Vec<(String, String, f64, f64, usize)>);

impl Table {
    pub(crate) fn add(&mut self, name: &str, unit: &str, mut values: Vec<f64>) {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        if n == 0 {
            return;
        }
        let at = |part: usize| values[(n * part).div_ceil(100).clamp(1, n) - 1];
        println!("{name:<48} {unit:>8} {:>14.2} {:>14.2} {n:>6}", at(50), at(99));
        self.0.push((name.to_owned(), unit.to_owned(), at(50), at(99), n));
    }

    pub(crate) fn one(&mut self, name: &str, unit: &str, value: f64) {
        self.add(name, unit, vec![value]);
    }

    pub(crate) fn finish(self) {
        let mut json = String::from("[\n");
        for (at, (name, unit, p50, p99, n)) in self.0.iter().enumerate() {
            let comma = if at + 1 < self.0.len() { "," } else { "" };
            let _ = writeln!(
                json,
                r#"  {{"name": "{name}", "unit": "{unit}", "p50": {p50}, "p99": {p99}, "n": {n}}}{comma}"#
            );
        }
        json.push_str("]\n");
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
        let dir = target.join("bench");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("snapshot.json"), json).unwrap();
    }
}
