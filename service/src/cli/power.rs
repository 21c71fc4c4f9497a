use clap::Args;
use retrovisor_proto::v1::{Machine, PauseMachineRequest, ResumeMachineRequest, StopMachineRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::paragraph;

/// Pauses or resumes a machine's vCPUs. No automatic checkpoints are taken of a paused machine.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor pause web\n  retrovisor resume web")]
pub(crate) struct PowerArgs {
    /// The machine
    name: String,
}

/// Takes a last checkpoint of a machine, then ends its process. Its history stays.
///
/// When the checkpoint fails, for example because the disk is full, the machine keeps running. With --force its process
/// is ended anyway: what the guest did since its newest checkpoint is lost.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor stop web\n  retrovisor stop web --force")]
pub(crate) struct StopArgs {
    /// The machine
    name: String,
    /// End the process also when the last checkpoint fails
    #[arg(long)]
    force: bool,
}

pub(super) async fn pause(args: PowerArgs, global: &Global) -> Result<(), CliError> {
    let request = PauseMachineRequest { machine: args.name };
    let answer =
        client::daemon(&global.store()?).await?.machines().pause_machine(request).await?.into_inner();
    print(answer.machine, global, |machine| {
        format!("{machine} is paused. Resume it: retrovisor resume {machine}")
    })
}

pub(super) async fn resume(args: PowerArgs, global: &Global) -> Result<(), CliError> {
    let request = ResumeMachineRequest { machine: args.name };
    let answer =
        client::daemon(&global.store()?).await?.machines().resume_machine(request).await?.into_inner();
    print(answer.machine, global, |machine| {
        format!("{machine} is running. Pause it: retrovisor pause {machine}")
    })
}

pub(super) async fn stop(args: StopArgs, global: &Global) -> Result<(), CliError> {
    let request = StopMachineRequest { machine: args.name, force: args.force };
    let answer = client::daemon(&global.store()?).await?.machines().stop_machine(request).await?.into_inner();
    let current = answer.machine.as_ref().map(|machine| machine.current.clone()).unwrap_or_default();
    print(answer.machine, global, |machine| {
        format!(
            "{machine} is stopped; its last state is checkpoint {current}. Start it from there: retrovisor rollback \
             {machine} --to latest"
        )
    })
}

fn print(
    machine: Option<Machine>,
    global: &Global,
    in_words: impl FnOnce(&str) -> String,
) -> Result<(), CliError> {
    let machine = machine.unwrap_or_default();
    if global.json {
        return print_json(&machine);
    }
    paragraph::print(&in_words(&machine.name));
    Ok(())
}
