use retrovisor_proto::v1::{ListMachinesRequest, Machine, RunState};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{style, table};

pub(super) async fn run(global: &Global) -> Result<(), CliError> {
    let answer = client::reader(&global.store)
        .await?
        .machines()
        .list_machines(ListMachinesRequest {})
        .await?
        .into_inner();
    if global.json {
        return print_json(&answer.machines);
    }
    if answer.machines.is_empty() {
        println!("No machine yet. Start one: retrovisor run NAME --kernel VMLINUZ --initrd INITRD");
        return Ok(());
    }
    let rows: Vec<_> = answer.machines.iter().map(row).collect();
    table::print(&["name", "state", "driver", "vcpus", "memory", "checkpoints", "present", "verdict"], &rows);
    Ok(())
}

fn row(machine: &Machine) -> Vec<String> {
    vec![
        machine.name.clone(),
        state(machine.run_state()).to_owned(),
        format!("{}/{}", machine.driver, machine.accelerator),
        machine.vcpus.to_string(),
        style::bytes(machine.memory_bytes),
        machine.checkpoints.to_string(),
        machine.present.clone(),
        style::verdict(machine.verdict()).to_owned(),
    ]
}

/// A run state in a word.
pub(super) fn state(state: RunState) -> &'static str {
    match state {
        RunState::Unspecified => "unknown",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Gone => "gone",
    }
}
