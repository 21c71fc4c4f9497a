use clap::Args;
use retrovisor_proto::v1::{Checkpoint, CreateCheckpointRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, quantity, verdict};

/// Takes a checkpoint now.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  retrovisor checkpoint web --label before-upgrade")]
pub(crate) struct CheckpointArgs {
    /// The machine
    name: String,
    /// Label for the checkpoint, by which it can be named later
    #[arg(long)]
    label: Option<String>,
}

pub(super) async fn run(args: CheckpointArgs, global: &Global) -> Result<(), CliError> {
    let request = CreateCheckpointRequest { machine: args.name, label: args.label.unwrap_or_default() };
    let answer =
        client::daemon(&global.store()?).await?.checkpoints().create_checkpoint(request).await?.into_inner();
    let checkpoint = answer.checkpoint.unwrap_or_default();
    if global.json {
        return print_json(&checkpoint);
    }
    paragraph::print(&format!("Checkpoint {}", line(&checkpoint)));
    let to = if checkpoint.label.is_empty() { &checkpoint.name } else { &checkpoint.label };
    outln!("Go back to it: retrovisor rollback {} --to {to}", checkpoint.machine);
    Ok(())
}

/// A checkpoint on one line.
pub(super) fn line(checkpoint: &Checkpoint) -> String {
    let label = if checkpoint.label.is_empty() { String::new() } else { format!(" `{}`", checkpoint.label) };
    format!(
        "{} #{}{label} · {} · {} dirty pages · {} stored · {}",
        checkpoint.name,
        checkpoint.sequence,
        if checkpoint.pause_us == 0 {
            "no pause".to_owned()
        } else {
            format!("pause {}", quantity::duration(checkpoint.pause_us))
        },
        checkpoint.dirty_pages,
        quantity::bytes(checkpoint.stored_bytes),
        verdict::word(checkpoint.verdict()),
    )
}
