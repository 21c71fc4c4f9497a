use clap::Args;
use retrovisor_proto::v1::DetachMachineRequest;

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::paragraph;

/// Ends the management of a machine; its process keeps running. Its history stays.
///
/// A QEMU is left as it was before it was attached. A microVM cannot run without the daemon and is refused: stop it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  retrovisor detach web")]
pub(crate) struct DetachArgs {
    /// The machine
    name: String,
}

pub(super) async fn run(args: DetachArgs, global: &Global) -> Result<(), CliError> {
    let request = DetachMachineRequest { machine: args.name.clone() };
    let client = client::daemon(&global.store()?).await?;
    let answer = client.machines().detach_machine(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    paragraph::print(&format!("{} is detached: its process runs on and is not managed.", args.name));
    for left in &answer.left_behind {
        paragraph::print(&format!("Left behind in its process: {left}"));
    }
    Ok(())
}
