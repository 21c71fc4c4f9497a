use clap::Args;
use retrovisor_proto::v1::{Checkpoint, CreateCheckpointRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::style;

/// Takes a checkpoint now.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  retrovisor checkpoint web --label before-upgrade")]
pub(crate) struct CheckpointArgs {
    /// The machine
    name: String,
    /// A name of your own to go back to
    #[arg(long)]
    label: Option<String>,
}

pub(super) async fn run(args: CheckpointArgs, global: &Global) -> Result<(), CliError> {
    let request = CreateCheckpointRequest { machine: args.name, label: args.label.unwrap_or_default() };
    let answer =
        client::daemon(&global.store).await?.checkpoints().create_checkpoint(request).await?.into_inner();
    let checkpoint = answer.checkpoint.unwrap_or_default();
    if global.json {
        return print_json(&checkpoint);
    }
    println!("Checkpoint {}", line(&checkpoint));
    let to = if checkpoint.label.is_empty() { &checkpoint.name } else { &checkpoint.label };
    println!("Come back to it: retrovisor rollback {} --to {to}", checkpoint.machine);
    Ok(())
}

/// A checkpoint on one line.
pub(super) fn line(checkpoint: &Checkpoint) -> String {
    let label = if checkpoint.label.is_empty() { String::new() } else { format!(" `{}`", checkpoint.label) };
    format!(
        "{} #{}{label} · pause {} · {} dirty pages · {} stored · {}",
        checkpoint.name,
        checkpoint.sequence,
        style::duration(checkpoint.pause_us),
        checkpoint.dirty_pages,
        style::bytes(checkpoint.stored_bytes),
        style::verdict(checkpoint.verdict()),
    )
}
