use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use retrovisor_proto::v1::AttachMachineRequest;

use super::global::{Global, print_json};
use super::interval::{interval_ms, parse_interval, warn_if_none};
use super::show;
use crate::client;
use crate::error::CliError;

/// Attaches to a running QEMU and manages it. It keeps running when it is detached, or when the daemon ends.
#[derive(Debug, Args)]
#[command(after_help = "\
Its RAM must be a shared file and its writable disks qcow2. Start QEMU for example with:
  qemu-system-x86_64 -object memory-backend-file,id=ram,size=512M,mem-path=/dev/shm/web,share=on \\
    -M q35,memory-backend=ram -m 512M -qmp unix:/run/web.qmp,server=on,wait=off …
Example:
  retrovisor attach web --qmp /run/web.qmp --every 1s")]
pub(crate) struct AttachArgs {
    /// Name for the machine
    name: String,
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
    /// Interval between automatic checkpoints, such as 200ms, 0.5s or 2s; 0 for none
    #[arg(long, default_value = "1s", value_parser = parse_interval)]
    every: Duration,
}

pub(super) async fn run(args: AttachArgs, global: &Global) -> Result<(), CliError> {
    let qmp = std::path::absolute(&args.qmp)
        .map_err(|error| CliError::failed(format!("{}: {error}", args.qmp.display())))?;
    let request = AttachMachineRequest {
        machine: args.name,
        qmp: qmp.to_string_lossy().into_owned(),
        every_ms: interval_ms(args.every),
    };
    let answer =
        client::daemon(&global.store()?).await?.machines().attach_machine(request).await?.into_inner();
    let machine = answer.machine.unwrap_or_default();
    if global.json {
        return print_json(&machine);
    }
    show::print(&machine);
    warn_if_none(&machine);
    Ok(())
}
