//! The page.

use std::fmt::Write as _;

use retrovisor_snapshot::Verdict;

use super::chart;
use super::content::{Incident, Point, Report};
use super::text::{escape, utc};
use crate::cause::{Cause, CauseKind};
use crate::number::{probability, short};
use crate::query::{NamedQuery, QUERIES};
use crate::sample::u64_f64;

/// Rows of the table of all checkpoints, the newest.
const ROWS_MAX: usize = 400;

pub(super) fn html(report: &Report) -> String {
    let mut page = String::with_capacity(64 * 1024);
    let title = escape(&report.machine);
    let _ = write!(
        page,
        concat!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
            // No script, nothing from elsewhere: whatever a guest manages to name itself.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
            "<title>{} · Retrovisor report</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n"
        ),
        title,
        include_str!("style.css")
    );
    head(&mut page, report);
    page.push_str("<section>\n<h2>History</h2>\n<div class=\"wide\">");
    page.push_str(&chart::history(report));
    page.push_str("</div>\n");
    legend(&mut page);
    page.push_str("</section>\n");
    for (number, incident) in report.incidents.iter().enumerate() {
        self::incident(&mut page, report, incident, number + 1);
    }
    if report.incidents.is_empty() {
        page.push_str("<section><h2>Incidents</h2><p>None: no checkpoint was called bad.</p></section>\n");
    }
    operations(&mut page, report);
    checkpoints(&mut page, report);
    method(&mut page, report);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn head(page: &mut String, report: &Report) {
    let count = |verdict| report.checkpoints.iter().filter(|point| point.verdict == verdict).count();
    let _ = write!(
        page,
        "<header>\n<p class=\"kicker\">Retrovisor report</p>\n<h1>{}</h1>\n<p class=\"lead\">{}</p>\n</header>\n",
        escape(&report.machine),
        escape(&summary(report))
    );
    page.push_str("<ul class=\"tiles\">");
    let mut tile = |class: &str, number: String, what: &str| {
        let _ = write!(page, "<li class=\"{class}\"><b>{}</b> {}</li>", escape(&number), escape(what));
    };
    tile("", report.checkpoints.len().to_string(), "checkpoints");
    tile("is-good", count(Verdict::Good).to_string(), "good");
    tile("is-unknown", count(Verdict::Unknown).to_string(), "unknown");
    tile("is-suspect", count(Verdict::Suspect).to_string(), "suspect");
    tile("is-bad", count(Verdict::Bad).to_string(), "bad");
    tile(
        "",
        report.operations.iter().filter(|operation| operation.kind == "rollback").count().to_string(),
        "rollbacks",
    );
    let stored: u64 = report.checkpoints.iter().map(|point| point.stored_bytes).sum();
    tile("", format!("{}B", short(u64_f64(stored))), "stored");
    page.push_str("</ul>\n");
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
    format!("{span}, driver {}: {incidents}.", report.driver)
}

fn legend(page: &mut String) {
    page.push_str(concat!(
        "<p class=\"legend\"><span class=\"is-good\">●</span> good <span class=\"is-unknown\">○</span> unknown ",
        "<span class=\"is-suspect\">▲</span> suspect <span class=\"is-bad\">■</span> bad. ",
        "A dashed curve leaves the checkpoint that the machine went back to; what it left stays on its own line. ",
        "The score is minus the decimal logarithm of the p-value, drawn as its root; a broken invariant scores 16.</p>\n"
    ));
}

fn name(report: &Report, sequence: u64) -> String {
    let name = report.point(sequence).map(|point| point.name.clone()).unwrap_or_default();
    format!("<span class=\"id\">#{sequence} <code>{}</code></span>", escape(&name))
}

fn incident(page: &mut String, report: &Report, incident: &Incident, number: usize) {
    let _ = write!(
        page,
        "<section class=\"incident\">\n<h2>Incident {number}{}</h2>\n<p class=\"lead\">{}</p>\n<dl class=\"facts\">",
        incident.name.as_ref().map(|name| format!(" <code>{}</code>", escape(name))).unwrap_or_default(),
        escape(&incident.summary)
    );
    let mut fact = |what: &str, html: &str| {
        let _ = write!(page, "<div><dt>{what}</dt><dd>{html}</dd></div>");
    };
    fact("First bad", &name(report, incident.onset));
    let delay = match incident.delay_checkpoints {
        0 => "at once".to_owned(),
        1 => "1 checkpoint later".to_owned(),
        more => format!("{more} checkpoints later"),
    };
    fact("Noticed", &format!("{}, {delay}", name(report, incident.alarm)));
    fact("Last good", &incident.last_good.map_or("none is known".to_owned(), |at| name(report, at)));
    fact("What was done", &escape(&action(report, incident)));
    page.push_str("</dl>\n");
    causes(page, incident);
    page.push_str("<h3>Evidence</h3>\n<ul>");
    // A broken invariant is a candidate already.
    let reported = |line: &&String| !incident.explanation.causes.iter().any(|cause| cause.text == **line);
    for line in incident.explanation.evidence.iter().filter(reported) {
        let _ = write!(page, "<li>{}</li>", escape(line));
    }
    page.push_str("</ul>\n");
    if !incident.series.is_empty() {
        page.push_str("<h3>What left its range</h3>\n<div class=\"grid\">");
        for series in &incident.series {
            let meaning = report
                .features
                .iter()
                .find(|feature| feature.name == series.feature)
                .map_or("", |f| f.meaning);
            let _ = write!(
                page,
                "<figure>{}<figcaption><code>{}</code> {}</figcaption></figure>",
                chart::feature(report, series, incident.onset),
                escape(series.feature),
                escape(meaning)
            );
        }
        page.push_str("</div>\n<p class=\"note\">The band is the range in clean checkpoints; the dashed line is where it began.</p>\n");
    }
    questions(page, report, incident);
    page.push_str("</section>\n");
}

/// What the incident says was done, or the first time the machine was moved after the alarm.
fn action(report: &Report, incident: &Incident) -> String {
    if let Some(action) = &incident.action {
        return action.clone();
    }
    let alarm_ms = report.point(incident.alarm).map_or(i64::MAX, |point| point.taken_at_ms);
    let Some(next) = report.operations.iter().find(|operation| operation.at_ms >= alarm_ms) else {
        return "nothing yet".to_owned();
    };
    let to = next.to.map(|to| format!(" to #{to}")).unwrap_or_default();
    format!("{}{to} at {} UTC", next.kind, utc(next.at_ms))
}

fn causes(page: &mut String, incident: &Incident) {
    let explanation = &incident.explanation;
    page.push_str("<h3>What may be to blame</h3>\n");
    if explanation.causes.is_empty() {
        page.push_str("<p>No candidate exceeds its usual range.</p>\n");
    } else {
        page.push_str("<table class=\"causes\"><thead><tr><th>#</th><th>kind</th><th>candidate</th><th>score</th></tr></thead><tbody>");
        for cause in &explanation.causes {
            self::cause(page, cause, &explanation.causes);
        }
        page.push_str("</tbody></table>\n");
    }
    let _ = writeln!(
        page,
        "<p class=\"note\">{} candidates were compared. A ranking that knows nothing would put the right one first in \
         {} of cases. Invariants come before tasks, tasks before counters; scores compare within a kind.</p>",
        explanation.candidates,
        escape(&percent(explanation.chance_level))
    );
}

fn cause(page: &mut String, cause: &Cause, all: &[Cause]) {
    let highest =
        all.iter().filter(|other| other.kind == cause.kind).map(|other| other.score).fold(1e-9, f64::max);
    let class = match cause.kind {
        CauseKind::Invariant => "is-bad",
        CauseKind::Task => "is-suspect",
        CauseKind::Counter => "is-unknown",
    };
    let _ = write!(
        page,
        "<tr><td>{}</td><td><span class=\"badge {class}\">{}</span></td><td><b>{}</b>",
        cause.rank,
        cause.kind,
        escape(&cause.text)
    );
    // The first piece of evidence is often the text itself.
    let more: Vec<_> = cause.evidence.iter().filter(|line| !cause.text.contains(line.as_str())).collect();
    if !more.is_empty() {
        let lines: Vec<_> = more.iter().map(|line| escape(line)).collect();
        let _ = write!(page, "<br><small>{}</small>", lines.join(" · "));
    }
    let _ = write!(
        page,
        "</td><td><span class=\"meter {class}\"><i style=\"width:{:.0}%\"></i></span> {}</td></tr>",
        100.0 * (cause.score / highest).clamp(0.0, 1.0),
        escape(&short(cause.score))
    );
}

fn percent(share: f64) -> String {
    if share >= 0.001 {
        format!("{} %", short(share * 100.0))
    } else {
        format!("{} %", probability(share * 100.0))
    }
}

/// The questions that can be asked about this incident, with the names filled in.
fn questions(page: &mut String, report: &Report, incident: &Incident) {
    let bad = report.point(incident.alarm).map(|point| point.name.clone());
    let good = incident.last_good.and_then(|at| report.point(at)).map(|point| point.name.clone());
    page.push_str("<details><summary>Ask the snapshot database</summary>\n");
    for query in QUERIES {
        let values: Option<Vec<String>> = query
            .parameters
            .iter()
            .map(|parameter| match *parameter {
                "name of the machine" => Some(report.machine.clone()),
                "name of a bad checkpoint" => bad.clone(),
                _ => good.clone(),
            })
            .collect();
        if let Some(values) = values {
            let _ = write!(
                page,
                "<p>{}</p><pre>{}</pre>",
                escape(query.question),
                escape_lines(&filled_in(query, &values))
            );
        }
    }
    page.push_str("</details>\n");
}

fn filled_in(query: &NamedQuery, values: &[String]) -> String {
    let mut sql = query.sql.to_owned();
    for (at, value) in values.iter().enumerate() {
        sql = sql.replace(&format!("?{}", at + 1), &format!("'{}'", value.replace('\'', "''")));
    }
    sql
}

fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

fn operations(page: &mut String, report: &Report) {
    if report.operations.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>What was done</h2>\n<table><thead><tr><th>when (UTC)</th><th>operation</th><th>from</th><th>to</th></tr></thead><tbody>");
    for operation in &report.operations {
        let place = |at: Option<u64>| at.map_or("–".to_owned(), |at| name(report, at));
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{} <code>{}</code></td><td>{}</td><td>{}</td></tr>",
            utc(operation.at_ms),
            escape(&operation.kind),
            escape(&operation.name),
            place(operation.from),
            place(operation.to)
        );
    }
    page.push_str("</tbody></table>\n</section>\n");
}

fn checkpoints(page: &mut String, report: &Report) {
    let odd = |point: &&Point| matches!(point.verdict, Verdict::Suspect | Verdict::Bad);
    let rows: Vec<&Point> = report.checkpoints.iter().filter(odd).collect();
    page.push_str("<section>\n<h2>Checkpoints</h2>\n");
    if !rows.is_empty() {
        page.push_str("<h3>Suspect and bad</h3>\n");
        table(page, &rows, true);
    }
    let newest: Vec<&Point> = report.checkpoints.iter().rev().take(ROWS_MAX).collect();
    let _ = writeln!(
        page,
        "<details><summary>The newest {} of {}</summary>",
        newest.len(),
        report.checkpoints.len()
    );
    table(page, &newest, false);
    page.push_str("</details>\n</section>\n");
}

fn table(page: &mut String, points: &[&Point], reasons: bool) {
    page.push_str("<div class=\"wide\"><table><thead><tr><th>#</th><th>name</th><th>taken (UTC)</th><th>verdict</th><th>score</th>");
    page.push_str(if reasons {
        "<th>why</th>"
    } else {
        "<th>guest uptime</th><th>pause</th><th>dirty pages</th><th>stored</th><th>label</th>"
    });
    page.push_str("</tr></thead><tbody>");
    for point in points.iter().take(ROWS_MAX) {
        let _ = write!(
            page,
            "<tr><td>{}</td><td><code>{}</code></td><td>{}</td><td><span class=\"badge is-{}\">{}</span></td><td class=\"n\">{}</td>",
            point.sequence,
            escape(&point.name),
            utc(point.taken_at_ms),
            point.verdict,
            point.verdict,
            escape(&short(point.score))
        );
        if reasons {
            let lines: Vec<_> = point.reasons.iter().take(4).map(|reason| escape(reason)).collect();
            let _ = write!(page, "<td><small>{}</small></td></tr>", lines.join("<br>"));
        } else {
            let _ = write!(
                page,
                "<td class=\"n\">{}</td><td class=\"n\">{} ms</td><td class=\"n\">{}</td><td class=\"n\">{}B</td><td>{}</td></tr>",
                point.uptime_s.map_or("–".to_owned(), |uptime| format!("{uptime:.1} s")),
                escape(&short(u64_f64(point.pause_us) / 1000.0)),
                point.dirty_pages,
                escape(&short(u64_f64(point.stored_bytes))),
                escape(point.label.as_deref().unwrap_or(if point.kind == "automatic" {
                    ""
                } else {
                    &point.kind
                }))
            );
        }
    }
    page.push_str("</tbody></table></div>\n");
}

fn method(page: &mut String, report: &Report) {
    let baseline = report.baseline_checkpoints.map_or_else(
        || format!("The baseline is still being learnt: it needs {} checkpoints.", report.config.baseline()),
        |count| format!("The baseline rests on {count} clean checkpoints."),
    );
    let _ = write!(
        page,
        "<section class=\"method\">\n<h2>How to read this</h2>\n<p>{} Each checkpoint is described by {} features, in guest \
         time. Three detectors (the largest robust deviation, principal components, nearest neighbours) compare it with \
         the baseline. Their p-values are counted against blocks of clean checkpoints held out in turn; below one in the \
         number of clean checkpoints they are extrapolated and mean an order of magnitude, not a frequency. A checkpoint \
         is suspect below {} with a feature at least {} robust deviations out, and bad when a second one in a row confirms \
         it, when it is extreme, or when an invariant is broken. It is good when nothing speaks against it and {} clean \
         ones have followed.</p>\n<p>Names of tasks, modules and log lines are the guest's own words.</p>\n</section>\n",
        escape(&baseline),
        report.features.len(),
        escape(&probability(report.config.alpha)),
        escape(&short(report.config.deviation_min)),
        report.config.settle_checkpoints
    );
}
