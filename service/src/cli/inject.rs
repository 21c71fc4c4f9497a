use clap::{Args, Subcommand};
use retrovisor_proto::v1::inject_request::Fault;
use retrovisor_proto::v1::{ConsoleCommand, InjectRequest, ListFaultsRequest, MemoryFault};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, table};

/// Injects a fault into a machine, to test detection and recovery.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  retrovisor inject web list\n  retrovisor inject web syscall-redirect syscall=getppid to=getuid\n  retrovisor inject web bit-flip symbol=linux_banner bit=5\n  retrovisor inject web command 'runaway &'"
)]
pub(crate) struct InjectArgs {
    /// The machine
    name: String,
    #[command(subcommand)]
    fault: FaultArgs,
}

#[derive(Debug, Subcommand)]
enum FaultArgs {
    /// Behaviour: sends a command to the guest's control shell (ttyS1 under QEMU, hvc0 in a microVM)
    Command {
        /// One line
        line: String,
    },
    /// Lists the faults in guest memory, with their parameters
    List,
    /// Guest memory: any fault of the list, with PARAMETER=VALUE for its parameters
    #[command(external_subcommand)]
    Memory(Vec<String>),
}

pub(super) async fn run(args: InjectArgs, global: &Global) -> Result<(), CliError> {
    let fault = match args.fault {
        FaultArgs::List => return list(global).await,
        FaultArgs::Memory(words) => Fault::MemoryFault(memory_fault(words)?),
        FaultArgs::Command { line } => Fault::ConsoleCommand(ConsoleCommand { line }),
    };
    let request = InjectRequest { machine: args.name.clone(), fault: Some(fault) };
    let answer = client::daemon(&global.store()?).await?.faults().inject(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    paragraph::print(&answer.done);
    outln!("Remove its effects: retrovisor rollback {}", args.name);
    Ok(())
}

/// A fault's name and its `PARAMETER=VALUE` words.
fn memory_fault(words: Vec<String>) -> Result<MemoryFault, CliError> {
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    let arguments = words.map(|word| match word.split_once('=') {
        Some((parameter, value)) => Ok((parameter.to_owned(), value.to_owned())),
        None => Err(CliError::refused(
            format!("`{}` is not PARAMETER=VALUE", word.escape_debug()),
            "See: retrovisor inject NAME list",
        )),
    });
    Ok(MemoryFault { name, arguments: arguments.collect::<Result<_, _>>()? })
}

async fn list(global: &Global) -> Result<(), CliError> {
    let answer = client::reader(&global.store()?)
        .await?
        .faults()
        .list_faults(ListFaultsRequest {})
        .await?
        .into_inner();
    if global.json {
        return print_json(&answer);
    }
    let rows = answer.faults.iter().flat_map(|fault| {
        let parameters = fault.parameters.iter().map(|parameter| {
            let default = parameter.default_value.as_ref().map(|value| format!(" (default {value})"));
            let text = format!("{}{}", parameter.doc, default.unwrap_or_default());
            vec![String::new(), parameter.name.clone(), text]
        });
        std::iter::once(vec![fault.name.clone(), String::new(), fault.doc.clone()]).chain(parameters)
    });
    table::print(&["fault", "parameter", "meaning"], &rows.collect::<Vec<_>>());
    Ok(())
}
