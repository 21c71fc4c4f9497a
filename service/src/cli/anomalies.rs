use clap::Args;
use retrovisor_proto::v1::{Incident, ListAnomaliesRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{output, paragraph, table, verdict};

/// Lists the suspect and bad checkpoints, and the incidents they form.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor anomalies web\n  retrovisor anomalies web --json")]
pub(crate) struct AnomaliesArgs {
    /// The machine
    name: String,
}

pub(super) async fn run(args: AnomaliesArgs, global: &Global) -> Result<(), CliError> {
    let request = ListAnomaliesRequest { machine: args.name.clone() };
    let answer =
        client::reader(&global.store()?).await?.anomalies().list_anomalies(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    if answer.checkpoints.is_empty() && answer.incidents.is_empty() {
        outln!("No anomaly in {}.", args.name);
        return Ok(());
    }
    let rows: Vec<_> = answer
        .checkpoints
        .iter()
        .map(|c| {
            vec![
                format!("{:.6}", c.name),
                format!("#{}", c.sequence),
                verdict::word(c.verdict()).to_owned(),
                c.score.map_or("-".to_owned(), |score| format!("{score:.1}")),
                c.reasons.first().cloned().unwrap_or_default(),
            ]
        })
        .collect();
    table::print(&["name", "seq", "verdict", "score", "strongest reason"], &rows);
    for incident in &answer.incidents {
        outln!();
        print_incident(incident);
    }
    outln!();
    outln!("The full report: retrovisor report {} --html report.html", args.name);
    Ok(())
}

/// An incident with its evidence and ranked causes.
pub(crate) fn print_incident(incident: &Incident) {
    let head = format!("Incident {:.6}:", incident.name);
    output::headed_line(output::BOLD, &head, &format!(" {}", incident.summary));
    paragraph::item(
        " ",
        &format!("first bad {:.6}, last good {:.6}", incident.first_bad, incident.last_good),
    );
    for evidence in incident.evidence.iter().take(4) {
        paragraph::item("  ·", evidence);
    }
    for cause in incident.causes.iter().take(3) {
        paragraph::item(&format!("  {}.", cause.rank), &cause.text);
    }
    if !incident.causes.is_empty() {
        let chance = incident.chance_level * 100.0;
        let text = format!("(a random ranking has the right cause first in {chance:.1} % of cases)");
        paragraph::item(" ", &text);
    }
    if !incident.action.is_empty() {
        paragraph::item("  done:", &incident.action);
    }
}
