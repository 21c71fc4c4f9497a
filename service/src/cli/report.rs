use std::path::PathBuf;

use clap::Args;
use retrovisor_proto::v1::GetReportRequest;

use super::global::Global;
use crate::client;
use crate::error::CliError;
use crate::terminal::output;

/// Writes the report of a machine as one self-contained HTML file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor report web --html web.html\n  retrovisor report web --json")]
pub(crate) struct ReportArgs {
    /// The machine
    name: String,
    /// The HTML file to write [default: NAME-report.html]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) async fn run(args: ReportArgs, global: &Global) -> Result<(), CliError> {
    let request = GetReportRequest { machine: args.name.clone() };
    let answer = client::reader(&global.store()?).await?.anomalies().get_report(request).await?.into_inner();
    if global.json {
        output::json(&answer.json);
        if args.html.is_none() {
            return Ok(());
        }
    }
    let path = args.html.unwrap_or_else(|| PathBuf::from(format!("{}-report.html", args.name)));
    std::fs::write(&path, answer.html).map_err(|error| {
        CliError::failed(format!("cannot write the report to {}: {error}", path.display()))
    })?;
    errln!("Wrote {}", path.display());
    Ok(())
}
