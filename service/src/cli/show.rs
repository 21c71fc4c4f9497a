use clap::Args;
use retrovisor_proto::v1::network_interface::Network;
use retrovisor_proto::v1::{GetMachineRequest, Machine};

use super::global::{Global, print_json};
use super::list;
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, quantity, verdict};

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The machine
    name: String,
}

pub(super) async fn run(args: ShowArgs, global: &Global) -> Result<(), CliError> {
    let request = GetMachineRequest { machine: args.name };
    let answer = client::reader(&global.store()?).await?.machines().get_machine(request).await?.into_inner();
    let machine = answer.machine.unwrap_or_default();
    if global.json {
        return print_json(&machine);
    }
    print(&machine);
    Ok(())
}

/// One machine, a property a line.
pub(super) fn print(machine: &Machine) {
    let line = |name: &str, value: &str| {
        if !value.is_empty() {
            paragraph::property(name, value);
        }
    };
    line("machine", &machine.name);
    let reason = match &machine.state_reason[..] {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    line("state", &format!("{}{reason}", list::state(machine.state())));
    line("driver", &format!("{} {} on {}", machine.driver, machine.driver_version, machine.accelerator));
    line("hardware", &format!("{} vCPU, {}", machine.vcpus, quantity::bytes(machine.memory_bytes)));
    line("dirty pages", &machine.dirty_finder);
    let every =
        if machine.every_ms == 0 { String::new() } else { format!(", one every {} ms", machine.every_ms) };
    line("checkpoints", &format!("{}{every}", machine.checkpoints));
    if !machine.current.is_empty() {
        line("current", &format!("{} ({})", machine.current, verdict::word(machine.verdict())));
    }
    for interface in &machine.interfaces {
        let network = match &interface.network {
            Some(Network::Hub(name)) => format!("hub {name}"),
            Some(Network::Tap(name)) => format!("tap {name}"),
            None => String::new(),
        };
        let status = if interface.link_up { "up" } else { "down" };
        line("network", &format!("{network}, {}, link {status}", interface.address));
    }
    if let Some(from) = &machine.branched_from {
        line("branched", &format!("from {} {} #{}", from.machine, from.checkpoint, from.sequence));
    }
    line("confined", &machine.confinement);
    line("console", &machine.console);
    line("console log", &machine.console_log);
}
