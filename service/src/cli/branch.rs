use clap::Args;
use retrovisor_proto::v1::{BranchDisk, BranchReport, BranchRequest};

use super::checkpoint_name::CheckpointName;
use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::progress::Progress;
use crate::terminal::{paragraph, quantity, verdict};

/// Starts a new machine with the state of another machine's checkpoint. The other machine is not changed.
#[derive(Debug, Args)]
#[command(after_help = "\
The new machine has its own history, disks and identity. Contents that both share are stored once.
Examples:
  retrovisor branch web web-try                       from web's current checkpoint
  retrovisor branch web autopsy --at -5 --paused      five checkpoints back, to be examined
  retrovisor branch web web-2 --at before-upgrade --dry-run
Afterwards: retrovisor log web-try, retrovisor rollback web-try --to latest, retrovisor stop web-try")]
pub(crate) struct BranchArgs {
    /// The machine
    name: String,
    /// Name for the new machine
    new: String,
    /// A name or its beginning, a label, @SEQUENCE, -N (N checkpoints back), latest, last-good, or current
    #[arg(long, default_value = "current", allow_hyphen_values = true, value_name = "CHECKPOINT")]
    at: CheckpointName,
    /// Only report what would be done
    #[arg(long)]
    dry_run: bool,
    /// Leave the new machine paused before its first instruction
    #[arg(long)]
    paused: bool,
}

pub(super) async fn run(args: BranchArgs, global: &Global) -> Result<(), CliError> {
    let request = BranchRequest {
        machine: args.name.clone(),
        new_machine: args.new.clone(),
        checkpoint: args.at.0,
        dry_run: args.dry_run,
        paused: args.paused,
    };
    let client = if args.dry_run {
        client::reader(&global.store()?).await?
    } else {
        client::daemon(&global.store()?).await?
    };
    let mut stream = client.checkpoints().branch(request).await?.into_inner();
    let progress = Progress::new(global.json);
    let mut report = None;
    while let Some(message) = stream.message().await? {
        progress.show(message.done, message.total, "pages");
        report = message.report;
    }
    drop(progress);
    let report =
        report.ok_or_else(|| CliError::failed("the branch was interrupted; nothing of it remains"))?;
    if global.json {
        return print_json(&report);
    }
    if report.dry_run {
        print_plan(&args.name, &report);
    } else {
        print_report(&args.name, &report, args.paused);
    }
    Ok(())
}

/// What would be done.
fn print_plan(name: &str, report: &BranchReport) {
    let origin = report.origin.clone().unwrap_or_default();
    paragraph::print(&format!(
        "Would start {} from {name} {} #{} ({}, {}) without changing {name}. Nothing was changed.",
        report.new_machine,
        origin.name,
        origin.sequence,
        quantity::ago(origin.taken_at_ms),
        verdict::word(origin.verdict()),
    ));
    let (memory, data) = (quantity::bytes(report.memory_bytes), quantity::bytes(report.data_bytes));
    paragraph::property("memory", &format!("{memory}, of which {data} hold data"));
    for disk in &report.disks {
        paragraph::property("disk", &in_words(disk));
    }
    for network in &report.networks {
        paragraph::property("network", network);
    }
    if report.warning.is_empty() {
        paragraph::property("identity", "a new generation identifier, before its first instruction");
    } else {
        paragraph::property("identity", &report.warning);
    }
}

fn in_words(disk: &BranchDisk) -> String {
    let base =
        if disk.base.is_empty() { String::new() } else { format!(" over {}, which is only read", disk.base) };
    format!(
        "{}: {}{base}; {} written since",
        disk.name,
        quantity::bytes(disk.size_bytes),
        quantity::bytes(disk.written_bytes)
    )
}

/// What was done, and what can be done next.
fn print_report(name: &str, report: &BranchReport, paused: bool) {
    let (origin, first) =
        (report.origin.clone().unwrap_or_default(), report.first.clone().unwrap_or_default());
    let new = &report.new_machine;
    paragraph::print(&format!(
        "{new} {} with the state of {name} {} #{}, after {}. Its first checkpoint is {}. {name} was not changed.",
        if paused { "is ready, paused," } else { "runs" },
        origin.name,
        origin.sequence,
        quantity::duration(report.branch_us),
        first.name,
    ));
    if !report.warning.is_empty() {
        paragraph::print(&format!("Note: {}", report.warning));
    }
    if paused {
        outln!("Resume it: retrovisor resume {new}");
    }
    paragraph::print(&format!(
        "Next: retrovisor log {new} · retrovisor console {new} · retrovisor stop {new}"
    ));
}
