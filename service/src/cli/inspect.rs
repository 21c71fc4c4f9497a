use clap::Args;
use retrovisor_proto::v1::InspectRequest;

use super::checkpoint;
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
    /// The machine
    name: String,
    /// What to show
    #[arg(default_value = "summary", value_parser = ["summary", "tasks", "processes", "sockets", "files", "mounts", "modules", "syscalls", "log", "counters", "processors", "integrity", "memory", "registers"])]
    what: String,
    /// Which checkpoint
    #[arg(long, default_value = "latest", allow_hyphen_values = true, value_name = "CHECKPOINT")]
    at: String,
}

pub(super) async fn run(args: InspectArgs, global: &Global) -> Result<(), CliError> {
    let request = InspectRequest { machine: args.name, checkpoint: args.at, what: args.what };
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
