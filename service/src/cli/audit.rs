use clap::Args;
use retrovisor_proto::v1::{AuditMachineRequest, AuditMachineResponse};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, quantity};

/// Compares a machine's whole memory, and its disks, with its newest checkpoint. Fails if a frame or a block differs.
///
/// The guest is paused for each piece of at most 64 MiB, and runs while that is compared. Frames that were written since the
/// checkpoint are passed over: the next checkpoint has them. Disks are read without a pause, as the checkpoint found
/// them.
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
    differing(&report).map_or(Ok(()), |message| Err(CliError::failed(message)))
}

/// What differs and what follows from it, if anything does.
fn differing(report: &AuditMachineResponse) -> Option<String> {
    let different: u64 = report.disks.iter().map(|disk| disk.mismatched_blocks).sum();
    let frames = quantity::count(report.mismatched_pages, "frame");
    let blocks = quantity::count(different, "block");
    let (what, next) = match (report.mismatched_pages, different) {
        (0, 0) => return None,
        (0, _) => (blocks, "every written block"),
        (_, 0) => (frames, "every frame"),
        _ => (format!("{frames} and {blocks}"), "every frame and every written block"),
    };
    let marked = match report.doubtful_from {
        0 => String::new(),
        from => format!(" Checkpoints from #{from} on are doubtful."),
    };
    Some(format!("{what} changed without being reported.{marked} The next checkpoint reads {next}"))
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
    for disk in &report.disks {
        let name = &disk.disk;
        if !disk.not_compared.is_empty() {
            paragraph::print(&format!("Disk {name} was not compared: {}.", disk.not_compared));
            continue;
        }
        outln!("{} of disk {name} compared.", quantity::count(disk.compared_blocks, "block"));
        if disk.mismatched_blocks == 0 {
            outln!("No block differs.");
        }
        for block in &disk.mismatched_block_numbers {
            outln!("differs: block {block} of disk {name}");
        }
    }
}

#[cfg(test)]
mod tests {
    use retrovisor_proto::v1::DiskAuditResult;

    use super::*;

    #[test]
    fn what_differs_is_said_with_what_follows() {
        let disk = |mismatched_blocks| DiskAuditResult { mismatched_blocks, ..DiskAuditResult::default() };
        let report = |mismatched_pages, disks: &[u64]| AuditMachineResponse {
            mismatched_pages,
            disks: disks.iter().map(|blocks| disk(*blocks)).collect(),
            doubtful_from: 7,
            ..AuditMachineResponse::default()
        };
        assert_eq!(differing(&report(0, &[0, 0])), None);
        let tail =
            "changed without being reported. Checkpoints from #7 on are doubtful. The next checkpoint reads";
        for (report, what, next) in [
            (report(2, &[]), "2 frames", "every frame"),
            (report(0, &[0, 1]), "1 block", "every written block"),
            (report(1, &[3, 4]), "1 frame and 7 blocks", "every frame and every written block"),
        ] {
            assert_eq!(differing(&report).unwrap(), format!("{what} {tail} {next}"));
        }
    }
}
