use clap::Args;
use retrovisor_proto::v1::{Incident, ListAnomaliesRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{style, table};

/// Lists the checkpoints that are not good, and the incidents they form.
#[derive(Debug, Args)]
pub(crate) struct AnomaliesArgs {
    /// The machine
    name: String,
}

pub(super) async fn run(args: AnomaliesArgs, global: &Global) -> Result<(), CliError> {
    let request = ListAnomaliesRequest { machine: args.name.clone() };
    let answer = client::reader(&global.store).await?.anomalies().list_anomalies(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    if answer.checkpoints.is_empty() && answer.incidents.is_empty() {
        println!("No anomaly in {}.", args.name);
        return Ok(());
    }
    let rows: Vec<_> = answer
        .checkpoints
        .iter()
        .map(|c| {
            vec![
                format!("{:.6}", c.name),
                format!("#{}", c.sequence),
                style::verdict(c.verdict()).to_owned(),
                c.score.map_or("-".to_owned(), |score| format!("{score:.1}")),
                style::printable(c.reasons.first().map_or("", String::as_str)),
            ]
        })
        .collect();
    table::print(&["name", "seq", "verdict", "score", "strongest reason"], &rows);
    for incident in &answer.incidents {
        println!();
        print_incident(incident);
    }
    println!("\nThe whole story: retrovisor report {} --html report.html", args.name);
    Ok(())
}

/// An incident with its evidence and ranked causes.
pub(crate) fn print_incident(incident: &Incident) {
    println!(
        "{} {}",
        style::bold(&format!("Incident {:.6}:", incident.name)),
        style::printable(&incident.summary)
    );
    println!("  first bad {:.6}, last good {:.6}", incident.first_bad, incident.last_good);
    for evidence in incident.evidence.iter().take(4) {
        println!("  · {}", style::printable(evidence));
    }
    for cause in incident.causes.iter().take(3) {
        println!("  {}. {}", cause.rank, style::printable(&cause.text));
    }
    if !incident.causes.is_empty() {
        println!(
            "  (by chance the right cause would be on top in {:.1} % of cases)",
            incident.chance_level * 100.0
        );
    }
    if !incident.action.is_empty() {
        println!("  done: {}", style::printable(&incident.action));
    }
}
