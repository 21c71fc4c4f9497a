//! The page. maud escapes HTML's special characters; [`shown`] replaces misleading ones.

mod alike;
mod incident;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use retrovisor_snapshot::Verdict;

use super::chart;
use super::content::{Point, Report};
use super::text::{shown, utc};
use crate::number::{probability, short};
use crate::sample::u64_f64;

/// Number of rows in the table of all checkpoints, the newest.
const ROWS_MAX: usize = 400;
/// Number of reasons shown for one checkpoint.
const REASONS_MAX: usize = 4;

pub(super) fn html(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // Neither scripts nor external resources are permitted, whatever names a guest chooses.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (shown(&report.machine)) " · Retrovisor report" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                main {
                    (head(report))
                    section {
                        h2 { "History" }
                        // If the chart is wider than the screen, its right end with the newest checkpoints is visible
                        // first.
                        div class="wide newest" { (PreEscaped(chart::history(report))) }
                        (legend())
                    }
                    @for (at, incident) in report.incidents.iter().enumerate() {
                        (incident::section(report, incident, at + 1))
                    }
                    @if report.incidents.is_empty() {
                        section {
                            h2 { "Incidents" }
                            p { "None: no checkpoint was called bad." }
                        }
                    }
                    (operations(report))
                    (checkpoints(report))
                    (method(report))
                }
            }
        }
    };
    page.into_string()
}

fn head(report: &Report) -> Markup {
    let count =
        |verdict| report.checkpoints.iter().filter(|point| point.verdict == verdict).count().to_string();
    let rollbacks = report.operations.iter().filter(|operation| operation.kind == "rollback").count();
    let stored: u64 = report.checkpoints.iter().map(|point| point.stored_bytes).sum();
    let tiles = [
        ("", report.checkpoints.len().to_string(), "checkpoints"),
        ("is-good", count(Verdict::Good), "good"),
        ("is-unknown", count(Verdict::Unknown), "unknown"),
        ("is-suspect", count(Verdict::Suspect), "suspect"),
        ("is-bad", count(Verdict::Bad), "bad"),
        ("", rollbacks.to_string(), "rollbacks"),
        ("", format!("{}B", short(u64_f64(stored))), "stored"),
    ];
    html! {
        header {
            p class="kicker" { "Retrovisor report" }
            h1 { (shown(&report.machine)) }
            p class="lead" { (shown(&summary(report))) }
            @if let Some(failure) = failure(report) { p class="failure" { (shown(&failure)) } }
        }
        ul class="tiles" {
            @for (class, number, what) in tiles {
                li class=(class) { b { (number) } " " (what) }
            }
        }
    }
}

fn summary(report: &Report) -> String {
    let span = match (report.checkpoints.first(), report.checkpoints.last()) {
        (Some(first), Some(last)) => format!("{} to {} UTC", utc(first.taken_at_ms), utc(last.taken_at_ms)),
        _ => "no checkpoint yet".to_owned(),
    };
    let incidents = match report.incidents.len() {
        0 => "no incident".to_owned(),
        1 => "one incident".to_owned(),
        many => format!("{many} incidents"),
    };
    let older = match report.older_checkpoints {
        0 => String::new(),
        older => {
            let shown = report.checkpoints.len();
            format!(" Only the newest {shown} of {} checkpoints are in this report.", shown + older)
        }
    };
    format!("{span}, driver {}: {incidents}.{older}", report.driver)
}

/// The failure of the guest's kernel in the newest checkpoint, and since when it is there.
fn failure(report: &Report) -> Option<String> {
    let newest = report.checkpoints.last()?;
    let failure = newest.failure.as_ref()?;
    let mut first = newest;
    while let Some(parent) =
        first.parent.and_then(|parent| report.point(parent)).filter(|p| p.failure.is_some())
    {
        first = parent;
    }
    let meaning = if failure.starts_with("kernel panic") {
        "The guest's kernel panicked: it stopped itself after an error, and runs nothing until the machine is rolled \
         back or restarted."
    } else {
        "The guest's kernel met an error of its own (an oops): it ended what it was doing and runs on, but its state \
         cannot be trusted."
    };
    Some(format!("{meaning} It shows first in checkpoint #{} {}: {failure}.", first.sequence, first.name))
}

fn legend() -> Markup {
    html! {
        p class="legend" {
            span class="is-good" { "●" } " good "
            span class="is-unknown" { "○" } " unknown "
            span class="is-suspect" { "▲" } " suspect "
            span class="is-bad" { "■" } " bad. "
            "A dashed curve leads from the checkpoint that the machine was rolled back to; the timeline that was left keeps \
             its own line. The score is minus the decimal logarithm of the p-value, drawn as its root; a broken invariant \
             scores 16."
        }
    }
}

/// A checkpoint as number and name.
fn name(report: &Report, sequence: u64) -> Markup {
    let name = report.point(sequence).map(|point| point.name.as_str()).unwrap_or_default();
    html! { span class="id" { "#" (sequence) " " code { (shown(name)) } } }
}

fn operations(report: &Report) -> Markup {
    if report.operations.is_empty() {
        return html! {};
    }
    let place = |at: Option<u64>| at.map_or_else(|| html! { "–" }, |at| name(report, at));
    html! {
        section {
            h2 { "Operations" }
            div class="wide" {
                table {
                    thead { tr { th { "when (UTC)" } th { "operation" } th { "from" } th { "to" } } }
                    tbody {
                        @for operation in &report.operations {
                            tr {
                                td { (utc(operation.at_ms)) }
                                td { (shown(&operation.kind)) " " code { (shown(&operation.name)) } }
                                td { (place(operation.from)) }
                                td { (place(operation.to)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn checkpoints(report: &Report) -> Markup {
    let odd = |point: &&Point| matches!(point.verdict, Verdict::Suspect | Verdict::Bad);
    let alarms: Vec<&Point> = report.checkpoints.iter().filter(odd).collect();
    let newest: Vec<&Point> = report.checkpoints.iter().rev().take(ROWS_MAX).collect();
    html! {
        section {
            h2 { "Checkpoints" }
            @if !alarms.is_empty() {
                h3 { "Suspect and bad" }
                (alarm_table(&alarms))
            }
            details {
                summary { "The newest " (newest.len()) " of " (report.checkpoints.len()) }
                (table(&newest))
            }
        }
    }
}

/// Suspect and bad checkpoints; consecutive ones with the same reasons share a row.
fn alarm_table(points: &[&Point]) -> Markup {
    let same = |one: &&&Point, other: &&&Point| {
        one.verdict == other.verdict && alike::texts(&one.reasons, &other.reasons)
    };
    let groups: Vec<&[&Point]> = points.chunk_by(|one, other| same(&one, &other)).collect();
    html! {
        div class="wide" {
            table class="alarms" {
                thead { tr { th { "#" } th { "name" } th { "taken (UTC)" } th { "verdict" } th { "score" } th { "why" } } }
                tbody {
                    @for group in groups.iter().take(ROWS_MAX) {
                        @if let (Some(first), Some(last)) = (group.first(), group.last()) {
                            tr {
                                td {
                                    (first.sequence)
                                    @if group.len() > 1 { "–" (last.sequence) br; small { (group.len()) " checkpoints" } }
                                }
                                td { code { (shown(&first.name)) } }
                                td { (utc(first.taken_at_ms)) }
                                td { (badge(first.verdict)) }
                                td class="n" { (short(first.score)) }
                                td { (reasons(&first.reasons)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A checkpoint's reasons; those that differ only in numbers and names share a line.
fn reasons(reasons: &[String]) -> Markup {
    let groups = alike::group(reasons, |reason| reason.as_str());
    html! {
        small {
            @for (at, group) in groups.iter().take(REASONS_MAX).enumerate() {
                @if at > 0 { br; }
                (shown(group[0]))
                @if group.len() > 1 { " (and " (group.len() - 1) " like it)" }
            }
        }
    }
}

fn table(points: &[&Point]) -> Markup {
    html! {
        div class="wide" {
            table {
                thead {
                    tr {
                        th { "#" } th { "name" } th { "taken (UTC)" } th { "verdict" } th { "score" } th { "guest uptime" }
                        th { "pause" } th { "dirty pages" } th { "stored" } th { "label" }
                    }
                }
                tbody {
                    @for point in points {
                        tr {
                            td { (point.sequence) }
                            td { code { (shown(&point.name)) } }
                            td class="n" { (utc(point.taken_at_ms)) }
                            td { (badge(point.verdict)) }
                            td class="n" { (short(point.score)) }
                            td class="n" { (point.uptime_s.map_or("–".to_owned(), |uptime| format!("{uptime:.1} s"))) }
                            td class="n" { (short(u64_f64(point.pause_us) / 1000.0)) " ms" }
                            td class="n" { (point.dirty_pages) }
                            td class="n" { (short(u64_f64(point.stored_bytes))) "B" }
                            td { (shown(label(point))) }
                        }
                    }
                }
            }
        }
    }
}

fn label(point: &Point) -> &str {
    let kind = if point.kind == "automatic" { "" } else { &point.kind };
    point.label.as_deref().unwrap_or(kind)
}

fn badge(verdict: Verdict) -> Markup {
    html! { span class={ "badge is-" (verdict) } { (verdict) } }
}

fn method(report: &Report) -> Markup {
    let baseline = report.baseline_checkpoints.map_or_else(
        || {
            format!(
                "The baseline is still being learnt: it needs {} checkpoints of a settled guest.",
                report.config.baseline()
            )
        },
        |count| format!("The baseline was learnt from {count} clean checkpoints."),
    );
    html! {
        section class="method" {
            h2 { "How to read this" }
            p {
                (baseline) " Each checkpoint is described by " (report.features.len()) " features, in guest time. Three \
                 detectors (the largest robust deviation, principal components, nearest neighbours) compare it with the \
                 baseline. Their p-values are counted against blocks of clean checkpoints held out in turn; below one in \
                 the number of clean checkpoints they are extrapolated and give an order of magnitude, not a frequency. A \
                 checkpoint is suspect below " (probability(report.config.alpha)) " with a feature at least "
                (short(report.config.deviation_min)) " robust deviations out, and bad when a second one in a row confirms \
                 it, when it is extreme, or when an invariant is broken. It is good when nothing was found and "
                (report.config.settle_checkpoints) " clean ones have followed."
            }
            p { "Names of tasks, modules and log lines were chosen by the guest." }
        }
    }
}
