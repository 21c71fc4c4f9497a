use clap::Args;
use retrovisor_proto::v1::{Machine, PauseMachineRequest, ResumeMachineRequest, StopMachineRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;

#[derive(Debug, Args)]
pub(crate) struct PowerArgs {
    /// The machine
    name: String,
}

pub(super) async fn pause(args: PowerArgs, global: &Global) -> Result<(), CliError> {
    let request = PauseMachineRequest { machine: args.name };
    let answer = client::daemon(&global.store).await?.machines().pause_machine(request).await?.into_inner();
    done(answer.machine, global, "paused. Let it run on: retrovisor resume")
}

pub(super) async fn resume(args: PowerArgs, global: &Global) -> Result<(), CliError> {
    let request = ResumeMachineRequest { machine: args.name };
    let answer = client::daemon(&global.store).await?.machines().resume_machine(request).await?.into_inner();
    done(answer.machine, global, "runs. Pause it: retrovisor pause")
}

pub(super) async fn stop(args: PowerArgs, global: &Global) -> Result<(), CliError> {
    let request = StopMachineRequest { machine: args.name };
    let answer = client::daemon(&global.store).await?.machines().stop_machine(request).await?.into_inner();
    done(
        answer.machine,
        global,
        "ended; its last state is kept. Bring it back: retrovisor rollback --to latest",
    )
}

fn done(machine: Option<Machine>, global: &Global, what: &str) -> Result<(), CliError> {
    let machine = machine.unwrap_or_default();
    if global.json {
        return print_json(&machine);
    }
    println!("{} {what} {} (it stands on {})", machine.name, machine.name, machine.present);
    Ok(())
}
