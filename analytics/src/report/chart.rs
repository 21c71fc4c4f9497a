//! The charts, as SVG inside the page. Colours are classes of the page's style sheet.

use std::collections::HashMap;
use std::fmt::Write as _;

use retrovisor_snapshot::Verdict;

use super::content::{Point, Report, Series};
use super::text::escape;
use crate::evaluation::Evaluation;
use crate::feature::{FEATURES, position};
use crate::number::short;
use crate::sample::count_f64;

const WIDTH: f64 = 1000.0;
const MARGIN_LEFT: f64 = 84.0;
const MARGIN_RIGHT: f64 = 16.0;
const LANE_HEIGHT: f64 = 26.0;
const SCORE_HEIGHT: f64 = 130.0;

/// The horizontal axis: one step for each checkpoint.
struct Axis {
    place: HashMap<u64, usize>,
    step: f64,
}

impl Axis {
    fn new(points: &[Point]) -> Self {
        let place: HashMap<u64, usize> =
            points.iter().enumerate().map(|(at, point)| (point.sequence, at)).collect();
        let step = (WIDTH - MARGIN_LEFT - MARGIN_RIGHT) / count_f64(points.len().max(1));
        Self { place, step }
    }

    fn x(&self, sequence: u64) -> Option<f64> {
        self.place.get(&sequence).map(|at| MARGIN_LEFT + self.step * (count_f64(*at) + 0.5))
    }
}

/// All checkpoints: timelines as lanes, rollbacks as curves, the score below.
pub(super) fn history(report: &Report) -> String {
    let points = &report.checkpoints;
    let axis = Axis::new(points);
    let mut lanes: Vec<i64> = points.iter().map(|point| point.timeline).collect();
    lanes.sort_unstable();
    lanes.dedup();
    let lane_y = |timeline: i64| {
        let lane = lanes.iter().position(|have| *have == timeline).unwrap_or(0);
        34.0 + LANE_HEIGHT * count_f64(lane)
    };
    let score_top = 34.0 + LANE_HEIGHT * count_f64(lanes.len()) + 14.0;
    let bottom = score_top + SCORE_HEIGHT;
    let mut svg = open("chart", WIDTH, bottom + 26.0, "Checkpoints, timelines, verdicts and scores");

    incident_marks(&mut svg, report, &axis, bottom);
    for (number, timeline) in lanes.iter().enumerate() {
        label(
            &mut svg,
            "axis end",
            MARGIN_LEFT - 12.0,
            lane_y(*timeline) + 4.0,
            &format!("line {}", number + 1),
        );
    }
    for point in points {
        let (Some(x), y) = (axis.x(point.sequence), lane_y(point.timeline)) else { continue };
        let Some(parent) = point.parent.and_then(|parent| report.point(parent)) else { continue };
        let (Some(x0), y0) = (axis.x(parent.sequence), lane_y(parent.timeline)) else { continue };
        let _ = if (y - y0).abs() < 0.5 {
            write!(svg, r#"<path class="link" d="M{x0:.1} {y0:.1}L{x:.1} {y:.1}"/>"#)
        } else {
            let middle = x0.midpoint(x);
            write!(
                svg,
                r#"<path class="back" d="M{x0:.1} {y0:.1}C{middle:.1} {y0:.1} {middle:.1} {y:.1} {x:.1} {y:.1}"/>"#
            )
        };
    }
    let size = (axis.step * 0.38).clamp(1.5, 5.5);
    for point in points {
        if let Some(x) = axis.x(point.sequence) {
            mark(&mut svg, point, x, lane_y(point.timeline), size);
        }
    }
    scores(&mut svg, report, &axis, score_top, bottom);
    sequence_labels(&mut svg, points, &axis, bottom + 16.0);
    svg.push_str("</svg>");
    svg
}

/// A shape and a colour for each verdict, so that they are distinguishable without colour and in print.
fn mark(svg: &mut String, point: &Point, x: f64, y: f64, size: f64) {
    let class = class(point);
    let title = escape(&format!(
        "#{} {} · {} · score {}{}",
        point.sequence,
        point.name,
        if point.learning { "learning".to_owned() } else { point.verdict.to_string() },
        short(point.score),
        point.label.as_ref().map(|label| format!(" · {label}")).unwrap_or_default(),
    ));
    let _ = match point.verdict {
        Verdict::Bad => write!(
            svg,
            r#"<rect class="{class}" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}"><title>{title}</title></rect>"#,
            x - size,
            y - size,
            size * 2.0,
            size * 2.0
        ),
        Verdict::Suspect => write!(
            svg,
            r#"<path class="{class}" d="M{x:.1} {:.1}L{:.1} {:.1}L{:.1} {:.1}Z"><title>{title}</title></path>"#,
            y - size * 1.3,
            x + size * 1.2,
            y + size,
            x - size * 1.2,
            y + size
        ),
        Verdict::Good | Verdict::Unknown => {
            write!(
                svg,
                r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{size:.1}"><title>{title}</title></circle>"#
            )
        }
    };
}

fn class(point: &Point) -> &'static str {
    match point.verdict {
        Verdict::Bad => "bad",
        Verdict::Suspect => "suspect",
        Verdict::Good => "good",
        Verdict::Unknown => "unknown",
    }
}

fn scores(svg: &mut String, report: &Report, axis: &Axis, top: f64, bottom: f64) {
    // The square root spreads small scores, which are the most frequent.
    let height = |score: f64| (bottom - top) * (score / Evaluation::SCORE_MAX).clamp(0.0, 1.0).sqrt();
    label(svg, "axis end", MARGIN_LEFT - 12.0, top + 10.0, "score");
    for (score, name, below) in [
        (crate::evaluation::score(report.config.alpha), "suspect", 9.0),
        (crate::evaluation::score(report.config.alpha_extreme), "bad at once", 1.0),
    ] {
        let y = bottom - height(score);
        let _ = write!(
            svg,
            r#"<path class="threshold" d="M{MARGIN_LEFT:.1} {y:.1}H{:.1}"/>"#,
            WIDTH - MARGIN_RIGHT
        );
        label(svg, "axis end", MARGIN_LEFT - 12.0, y + below, name);
    }
    let width = (axis.step * 0.7).clamp(0.8, 14.0);
    for point in &report.checkpoints {
        let Some(x) = axis.x(point.sequence) else { continue };
        let height = height(point.score).max(1.0);
        let _ = write!(
            svg,
            r#"<rect class="bar {}" x="{:.1}" y="{:.1}" width="{width:.1}" height="{height:.1}"/>"#,
            class(point),
            x - width / 2.0,
            bottom - height
        );
    }
    let _ = write!(
        svg,
        r#"<path class="axis-line" d="M{MARGIN_LEFT:.1} {bottom:.1}H{:.1}"/>"#,
        WIDTH - MARGIN_RIGHT
    );
}

/// The mark from the first bad checkpoint to the alarm.
fn incident_marks(svg: &mut String, report: &Report, axis: &Axis, bottom: f64) {
    // A label that would cover the one before it is left out; its mark still has a title.
    const LABEL_WIDTH: f64 = 70.0;
    let mut free_from = 0.0;
    for (number, incident) in report.incidents.iter().enumerate() {
        let (Some(from), Some(to)) = (axis.x(incident.onset), axis.x(incident.alarm)) else { continue };
        let (left, right) = (from.min(to) - axis.step / 2.0, from.max(to) + axis.step / 2.0);
        let _ = write!(
            svg,
            r#"<rect class="span" x="{left:.1}" y="18" width="{:.1}" height="{:.1}"><title>incident {}</title></rect>"#,
            right - left,
            bottom - 18.0,
            number + 1
        );
        let middle = left.midpoint(right).min(WIDTH - LABEL_WIDTH / 2.0);
        if middle - LABEL_WIDTH / 2.0 >= free_from {
            label(svg, "axis middle", middle, 13.0, &format!("incident {}", number + 1));
            free_from = middle + LABEL_WIDTH / 2.0;
        }
    }
}

fn sequence_labels(svg: &mut String, points: &[Point], axis: &Axis, y: f64) {
    let every = points.len().div_ceil(16).max(1);
    for point in points.iter().step_by(every) {
        if let Some(x) = axis.x(point.sequence) {
            label(svg, "axis middle", x, y, &format!("#{}", point.sequence));
        }
    }
}

/// One feature around an incident: its range in clean checkpoints as a band, its values as a line for each timeline.
pub(super) fn feature(report: &Report, series: &Series, onset: u64) -> String {
    const WIDE: f64 = 320.0;
    const HIGH: f64 = 110.0;
    const LEFT: f64 = 46.0;
    let Some(feature) = position(series.feature).and_then(|at| FEATURES.get(at)) else {
        return String::new();
    };
    let scaled = |raw: f64| feature.shape.apply(raw);
    let band = series.usual.map(|(low, high)| (scaled(low), scaled(high)));
    let all =
        series.values.iter().map(|(_, raw)| scaled(*raw)).chain(band.iter().flat_map(|(l, h)| [*l, *h]));
    let (low, high) =
        all.filter(|v| v.is_finite()).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return String::new();
    }
    let span = (high - low).max(feature.floor);
    let y = |scaled: f64| 12.0 + (HIGH - 30.0) * (1.0 - ((scaled - low) / span).clamp(0.0, 1.0));
    let step = (WIDE - LEFT - 8.0) / count_f64(series.values.len().max(1));
    let place: HashMap<u64, (f64, f64)> = series
        .values
        .iter()
        .enumerate()
        .map(|(at, (sequence, raw))| (*sequence, (LEFT + step * (count_f64(at) + 0.5), y(scaled(*raw)))))
        .collect();

    let mut svg = open("small", WIDE, HIGH, &format!("{} over the checkpoints", feature.name));
    if let Some((low, high)) = band {
        let (top, foot) = (y(high) - 2.0, y(low) + 2.0);
        let _ = write!(
            svg,
            r#"<rect class="usual" x="{LEFT}" y="{top:.1}" width="{:.1}" height="{:.1}"/>"#,
            WIDE - LEFT - 8.0,
            foot - top
        );
    }
    if let Some((x, _)) = place.get(&onset) {
        let _ = write!(svg, r#"<path class="onset" d="M{:.1} 6V{:.1}"/>"#, x - step / 2.0, HIGH - 16.0);
    }
    let mut at: Vec<_> =
        series.values.iter().filter_map(|(n, _)| Some((*n, *place.get(n)?, report.point(*n)?))).collect();
    at.sort_by_key(|(sequence, _, _)| *sequence);
    for (_, (x, y), point) in &at {
        if let Some((x0, y0)) = point.parent.and_then(|parent| place.get(&parent)) {
            let _ = write!(svg, r#"<path class="line" d="M{x0:.1} {y0:.1}L{x:.1} {y:.1}"/>"#);
        }
    }
    for (_, (x, y), point) in &at {
        mark(&mut svg, point, *x, *y, if point.verdict == Verdict::Bad { 3.0 } else { 2.0 });
    }
    label(&mut svg, "axis end", LEFT - 6.0, y(high) + 4.0, &short(feature.shape.undo(high)));
    label(&mut svg, "axis end", LEFT - 6.0, y(low) + 4.0, &short(feature.shape.undo(low)));
    if let (Some(first), Some(last)) = (at.first(), at.last()) {
        label(&mut svg, "axis", LEFT, HIGH - 3.0, &format!("#{}", first.0));
        label(&mut svg, "axis end", WIDE - 8.0, HIGH - 3.0, &format!("#{}", last.0));
    }
    svg.push_str("</svg>");
    svg
}

fn open(class: &str, width: f64, height: f64, title: &str) -> String {
    format!(
        r#"<svg class="{class}" viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{}">"#,
        escape(title)
    )
}

fn label(svg: &mut String, class: &str, x: f64, y: f64, text: &str) {
    let _ = write!(svg, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text));
}
