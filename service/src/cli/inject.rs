use clap::{Args, Subcommand};
use retrovisor_proto::v1::inject_request::Fault;
use retrovisor_proto::v1::{ConsoleCommand, InjectRequest, SyscallRedirect};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::paragraph;

/// Injects a fault into a machine, to test detection and recovery.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  retrovisor inject web syscall-redirect --syscall getppid --to getuid\n  retrovisor inject web command 'runaway &'"
)]
pub(crate) struct InjectArgs {
    /// The machine
    name: String,
    #[command(subcommand)]
    fault: FaultArgs,
}

#[derive(Debug, Subcommand)]
enum FaultArgs {
    /// Guest memory: replaces the kernel function of a system call by another one
    SyscallRedirect {
        /// The system call to redirect
        #[arg(long, default_value = "getppid")]
        syscall: String,
        /// The system call whose function is run instead
        #[arg(long, default_value = "getuid")]
        to: String,
    },
    /// Behaviour: sends a command to the guest's control shell (ttyS1 under QEMU, hvc0 in a microVM)
    Command {
        /// One line
        line: String,
    },
}

pub(super) async fn run(args: InjectArgs, global: &Global) -> Result<(), CliError> {
    let fault = match args.fault {
        FaultArgs::SyscallRedirect { syscall, to } => Fault::SyscallRedirect(SyscallRedirect { syscall, to }),
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
