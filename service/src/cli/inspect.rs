use clap::Args;
use retrovisor_proto::v1::{InspectRequest, ListQuestionsRequest};

use super::checkpoint;
use super::checkpoint_name::CheckpointName;
use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, table};

/// Shows what was read from a checkpoint's memory.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  retrovisor inspect web tasks\n  retrovisor inspect web sockets\n  retrovisor inspect web log --at last-good\n  retrovisor inspect web integrity --at -1"
)]
pub(crate) struct InspectArgs {
    /// The machine (not with --list)
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// What to show: one of --list
    #[arg(default_value = "summary")]
    what: String,
    /// Which checkpoint
    #[arg(long, default_value = "latest", allow_hyphen_values = true, value_name = "CHECKPOINT")]
    at: CheckpointName,
    /// List what can be shown
    #[arg(long)]
    list: bool,
}

pub(super) async fn run(args: InspectArgs, global: &Global) -> Result<(), CliError> {
    if args.list {
        let client = client::reader(&global.store()?).await?;
        let answer = client.checkpoints().list_questions(ListQuestionsRequest {}).await?.into_inner();
        if global.json {
            return print_json(&answer);
        }
        let rows: Vec<_> =
            answer.questions.into_iter().map(|question| vec![question.name, question.doc]).collect();
        table::print(&["name", "shows"], &rows);
        return Ok(());
    }
    let request =
        InspectRequest { machine: args.name.unwrap_or_default(), checkpoint: args.at.0, what: args.what };
    let answer = client::reader(&global.store()?).await?.checkpoints().inspect(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    paragraph::print(&checkpoint::line(&answer.checkpoint.unwrap_or_default()));
    for facts in &answer.tables {
        outln!();
        table::print_facts(facts);
    }
    Ok(())
}
