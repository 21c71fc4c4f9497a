use clap::Args;
use retrovisor_proto::v1::{AuditMachineRequest, AuditMachineResponse};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, quantity};

/// Compares a machine's whole memory with its newest checkpoint. Fails if a frame differs.
///
/// The guest is paused for each piece of at most 64 MiB, and runs while that is compared. Frames that were written since the
/// checkpoint are passed over: the next checkpoint has them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor audit web\n  retrovisor audit web --json")]
pub(crate) struct AuditArgs {
    /// The machine
    name: String,
}

pub(super) async fn run(args: AuditArgs, global: &Global) -> Result<(), CliError> {
    let request = AuditMachineRequest { machine: args.name };
    let client = client::daemon(&global.store()?).await?;
    let report = client.checkpoints().audit_machine(request).await?.into_inner();
    if global.json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    if report.mismatched_pages == 0 {
        return Ok(());
    }
    let marked = match report.doubtful_from {
        0 => String::new(),
        from => format!(" Checkpoints from #{from} on are doubtful."),
    };
    Err(CliError::failed(format!(
        "{} changed without being reported.{marked} The next checkpoint reads every frame",
        quantity::count(report.mismatched_pages, "frame")
    )))
}

fn print(report: &AuditMachineResponse) {
    let checkpoint = report.checkpoint.clone().unwrap_or_default();
    paragraph::print(&format!(
        "{} of {} compared with checkpoint {:.6} #{}, {} written since; {} in {}, the longest took {}.",
        report.compared_pages,
        quantity::count(report.total_pages, "frame"),
        checkpoint.name,
        checkpoint.sequence,
        report.written_pages,
        quantity::count(report.pauses, "pause"),
        quantity::duration(report.total_us),
        quantity::duration(report.pause_max_us),
    ));
    if report.mismatched_pages == 0 {
        outln!("No frame differs.");
    }
    for gfn in &report.mismatched_gfns {
        outln!("differs: frame {gfn:#x}");
    }
}
