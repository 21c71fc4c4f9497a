//! One incident: its onset, the candidates for its cause, and queries for further investigation.

use maud::{Markup, PreEscaped, html};

use super::{alike, name};
use crate::cause::{Cause, CauseKind};
use crate::number::{probability, short};
use crate::query::{NamedQuery, QUERIES};
use crate::report::chart;
use crate::report::content::{Incident, Report};
use crate::report::text::{shown, utc};

/// Number of objects that are named in a group of similar causes.
const ALIKE_MAX: usize = 8;

pub(super) fn section(report: &Report, incident: &Incident, number: usize) -> Markup {
    let delay = match incident.delay_checkpoints {
        0 => "at once".to_owned(),
        1 => "1 checkpoint later".to_owned(),
        more => format!("{more} checkpoints later"),
    };
    // A broken invariant is already listed as a cause.
    let is_cause = |line: &&String| incident.explanation.causes.iter().any(|cause| cause.text == **line);
    html! {
        section class="incident" {
            h2 {
                "Incident " (number)
                @if let Some(id) = &incident.name { " " code { (shown(id)) } }
            }
            p class="lead" { (shown(&incident.summary)) }
            dl class="facts" {
                div { dt { "First bad" } dd { (name(report, incident.onset)) } }
                div { dt { "Noticed" } dd { (name(report, incident.alarm)) ", " (delay) } }
                div {
                    dt { "Last good" }
                    dd {
                        @match incident.last_good {
                            Some(at) => (name(report, at)),
                            None => "none is known",
                        }
                    }
                }
                div { dt { "Action" } dd { (shown(&action(report, incident))) } }
            }
            (causes(incident))
            h3 { "Evidence" }
            ul {
                @for line in incident.explanation.evidence.iter().filter(|line| !is_cause(line)) { li { (shown(line)) } }
            }
            (series(report, incident))
            (questions(report, incident))
        }
    }
}

/// The recorded action of the incident, or the first operation on the machine after the alarm.
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

fn causes(incident: &Incident) -> Markup {
    let explanation = &incident.explanation;
    let groups = alike::group(&explanation.causes, |cause| cause.text.as_str());
    html! {
        h3 { "Possible causes" }
        @if groups.is_empty() {
            p { "No candidate exceeds its usual range." }
        } @else {
            table class="causes" {
                thead { tr { th { "#" } th { "kind" } th { "candidate" } th { "score" } } }
                tbody { @for group in &groups { (cause(group, &explanation.causes)) } }
            }
        }
        p class="note" {
            (explanation.candidates) " candidates were compared. A ranking by chance would put the right one first in "
            (percent(explanation.chance_level)) " of cases. Invariants come before tasks, tasks before counters; scores \
             compare within a kind."
        }
    }
}

/// A row for a group of similar causes.
fn cause(group: &[&Cause], all: &[Cause]) -> Markup {
    let cause = group[0];
    let highest =
        all.iter().filter(|other| other.kind == cause.kind).map(|other| other.score).fold(1e-9, f64::max);
    let class = match cause.kind {
        CauseKind::Invariant => "is-bad",
        CauseKind::Task => "is-suspect",
        CauseKind::Counter => "is-unknown",
    };
    // The first evidence is often the text itself.
    let more: Vec<_> = cause.evidence.iter().filter(|line| !cause.text.contains(line.as_str())).collect();
    let others: Vec<_> = group[1..].iter().take(ALIKE_MAX).map(|cause| shown(&cause.object)).collect();
    let width = format!("width:{:.0}%", 100.0 * (cause.score / highest).clamp(0.0, 1.0));
    html! {
        tr {
            td { (cause.rank) }
            td { span class={ "badge " (class) } { (cause.kind.to_string()) } }
            td {
                b { (shown(&cause.text)) }
                @if !more.is_empty() {
                    br;
                    small { @for (at, line) in more.iter().enumerate() { @if at > 0 { " · " } (shown(line)) } }
                }
                @if !others.is_empty() {
                    br;
                    small {
                        "and " (group.len() - 1) " like it: " (others.join(", "))
                        @if group.len() - 1 > ALIKE_MAX { ", …" }
                    }
                }
            }
            td { span class={ "meter " (class) } { i style=(width) {} } " " (short(cause.score)) }
        }
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    format!("{} %", if share >= 0.001 { short(percent) } else { probability(percent) })
}

fn series(report: &Report, incident: &Incident) -> Markup {
    if incident.series.is_empty() {
        return html! {};
    }
    let meaning = |name: &str| {
        report.features.iter().find(|feature| feature.name == name).map_or("", |feature| feature.meaning)
    };
    html! {
        h3 { "Features that left their range" }
        div class="grid" {
            @for series in &incident.series {
                figure {
                    (PreEscaped(chart::feature(report, series, incident.onset)))
                    figcaption { code { (series.feature) } " " (meaning(series.feature)) }
                }
            }
        }
        p class="note" { "The band is the range in clean checkpoints; the dashed line is where it began." }
    }
}

/// The named queries about this incident, with their parameters.
fn questions(report: &Report, incident: &Incident) -> Markup {
    let bad = report.point(incident.alarm).map(|point| point.name.clone());
    let good = incident.last_good.and_then(|at| report.point(at)).map(|point| point.name.clone());
    let value = |parameter: &&str| match *parameter {
        "name of the machine" => Some(report.machine.clone()),
        "name of a bad checkpoint" => bad.clone(),
        _ => good.clone(),
    };
    html! {
        details {
            summary { "Ask the snapshot database" }
            @for query in QUERIES {
                @if let Some(values) = query.parameters.iter().map(value).collect::<Option<Vec<_>>>() {
                    p { (query.question) }
                    pre { (filled_in(query, &values).lines().map(shown).collect::<Vec<_>>().join("\n")) }
                }
            }
        }
    }
}

fn filled_in(query: &NamedQuery, values: &[String]) -> String {
    let mut sql = query.sql.to_owned();
    for (at, value) in values.iter().enumerate() {
        sql = sql.replace(&format!("?{}", at + 1), &format!("'{}'", value.replace('\'', "''")));
    }
    sql
}
