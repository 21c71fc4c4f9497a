use retrovisor_proto::v1::{ListMachinesRequest, Machine, MachineState};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{quantity, table, verdict};

pub(super) async fn run(global: &Global) -> Result<(), CliError> {
    let answer = client::reader(&global.store()?)
        .await?
        .machines()
        .list_machines(ListMachinesRequest {})
        .await?
        .into_inner();
    if global.json {
        return print_json(&answer.machines);
    }
    if answer.machines.is_empty() {
        outln!("There is no machine. Start one: retrovisor run NAME --kernel VMLINUZ --initrd INITRD");
        return Ok(());
    }
    let rows: Vec<_> = answer.machines.iter().map(row).collect();
    table::print(&["name", "state", "driver", "vcpus", "memory", "checkpoints", "current", "verdict"], &rows);
    Ok(())
}

fn row(machine: &Machine) -> Vec<String> {
    vec![
        machine.name.clone(),
        state(machine.state()).to_owned(),
        format!("{}/{}", machine.driver, machine.accelerator),
        machine.vcpus.to_string(),
        quantity::bytes(machine.memory_bytes),
        machine.checkpoints.to_string(),
        machine.current.clone(),
        verdict::word(machine.verdict()).to_owned(),
    ]
}

/// A state in words.
pub(super) fn state(state: MachineState) -> &'static str {
    match state {
        MachineState::Unspecified => "unknown",
        MachineState::Running => "running",
        MachineState::Paused => "paused",
        MachineState::Gone => "gone",
        MachineState::Starting => "starting",
        MachineState::PoweredOff => "powered off",
        MachineState::Panicked => "panicked",
        MachineState::Unreachable => "unreachable",
        MachineState::Failed => "failed",
        MachineState::Detached => "detached",
    }
}
