use std::time::Duration;

use clap::Args;
use retrovisor_proto::v1::SetMachineRequest;

use super::global::{Global, print_json};
use super::interval::{interval_ms, parse_interval, warn_if_none};
use super::show;
use crate::client;
use crate::error::CliError;

/// Changes settings of a machine. They are kept in the store.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor set web --every 200ms\n  retrovisor set web --every 0")]
pub(crate) struct SetArgs {
    /// The machine
    name: String,
    /// Interval between automatic checkpoints, such as 200ms, 0.5s or 2s; 0 for none
    #[arg(long, value_parser = parse_interval, required = true)]
    every: Option<Duration>,
}

pub(super) async fn run(args: SetArgs, global: &Global) -> Result<(), CliError> {
    let request = SetMachineRequest { machine: args.name, every_ms: args.every.map(interval_ms) };
    let answer = client::daemon(&global.store()?).await?.machines().set_machine(request).await?.into_inner();
    let machine = answer.machine.unwrap_or_default();
    if global.json {
        return print_json(&machine);
    }
    show::print(&machine);
    warn_if_none(&machine);
    Ok(())
}
