use clap::Args;
use retrovisor_proto::v1::PinCheckpointRequest;

use super::checkpoint_name::CheckpointName;
use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;

/// Protects a checkpoint from pruning, or ends that protection. Works without a daemon, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor pin web before-upgrade
  retrovisor unpin web before-upgrade")]
pub(crate) struct PinArgs {
    /// The machine
    name: String,
    /// A name or its beginning, a label, @SEQUENCE, -N (N checkpoints back), latest, or last-good
    #[arg(allow_hyphen_values = true, value_name = "CHECKPOINT")]
    checkpoint: CheckpointName,
}

pub(super) async fn run(args: PinArgs, pinned: bool, global: &Global) -> Result<(), CliError> {
    let request = PinCheckpointRequest { machine: args.name.clone(), checkpoint: args.checkpoint.0, pinned };
    let answer =
        client::writer(&global.store()?).await?.checkpoints().pin_checkpoint(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    let checkpoint = answer.checkpoint.unwrap_or_default();
    let (state, back) = if pinned { ("pinned", "unpin") } else { ("not pinned", "pin") };
    let already = if answer.changed { "" } else { " already" };
    outln!("{} #{} is {state}{already}.", checkpoint.name, checkpoint.sequence);
    if answer.changed {
        outln!("Undo it: retrovisor {back} {} {}", args.name, checkpoint.name);
    }
    Ok(())
}
