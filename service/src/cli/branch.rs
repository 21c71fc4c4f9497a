use clap::Args;
use retrovisor_proto::v1::{BranchDisk, BranchReport, BranchRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::progress::Progress;
use crate::terminal::{paragraph, style};

/// Starts a second machine that goes on from a checkpoint of a first, which runs on as before.
#[derive(Debug, Args)]
#[command(after_help = "\
The new machine has a history, disks and an identity of its own. What both have in common is stored once.
Examples:
  retrovisor branch web web-try                       from where web stands
  retrovisor branch web autopsy --at -5 --paused      five checkpoints back, to be looked at
  retrovisor branch web web-2 --at before-upgrade --dry-run
Afterwards: retrovisor log web-try, retrovisor rollback web-try --to latest, retrovisor stop web-try")]
pub(crate) struct BranchArgs {
    /// The machine
    name: String,
    /// A name for the new one
    new: String,
    /// A name or its beginning, a label, @SEQUENCE, -N (N checkpoints back), latest, last-good, or current: where it stands
    #[arg(long, default_value = "current", allow_hyphen_values = true, value_name = "CHECKPOINT")]
    at: String,
    /// Only say what would happen
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
        checkpoint: args.at,
        dry_run: args.dry_run,
        paused: args.paused,
    };
    let client = if args.dry_run {
        client::reader(&global.store).await?
    } else {
        client::daemon(&global.store).await?
    };
    let mut stream = client.checkpoints().branch(request).await?.into_inner();
    let mut progress = Progress::new(global.json);
    let mut report = None;
    while let Some(message) = stream.message().await? {
        progress.show(message.done, message.total, "pages");
        report = message.report;
    }
    drop(progress);
    let report = report.ok_or_else(|| CliError::failed("the branch was cut short; nothing of it is left"))?;
    if global.json {
        return print_json(&report);
    }
    if report.dry_run {
        outline(&args.name, &report);
    } else {
        told(&args.name, &report, args.paused);
    }
    Ok(())
}

/// What would be done.
fn outline(name: &str, report: &BranchReport) {
    let origin = report.origin.clone().unwrap_or_default();
    paragraph::print(&format!(
        "Would start {} from {name} {} #{} ({}, {}), while {name} stays as it is. Nothing was changed.",
        report.new_machine,
        origin.name,
        origin.sequence,
        style::ago(origin.taken_at_ms),
        style::verdict(origin.verdict()),
    ));
    println!(
        "memory       {}, of which {} hold data",
        style::bytes(report.memory_bytes),
        style::bytes(report.data_bytes)
    );
    for disk in &report.disks {
        println!("disk         {}", shown(disk));
    }
    for network in &report.networks {
        println!("network      {network}");
    }
    if report.warning.is_empty() {
        println!("identity     a new generation identifier, before its first instruction");
    } else {
        paragraph::print(&format!("identity     {}", report.warning));
    }
}

fn shown(disk: &BranchDisk) -> String {
    let over = if disk.base.is_empty() {
        String::new()
    } else {
        format!(" over {}, which is only read", style::printable(&disk.base))
    };
    format!(
        "{}: {}{over}; {} of its own",
        style::printable(&disk.name),
        style::bytes(disk.size_bytes),
        style::bytes(disk.written_bytes)
    )
}

/// What was done, and the ways from here.
fn told(name: &str, report: &BranchReport, paused: bool) {
    let (origin, first) =
        (report.origin.clone().unwrap_or_default(), report.first.clone().unwrap_or_default());
    let new = &report.new_machine;
    paragraph::print(&format!(
        "{new} {} from {name} {} #{}, {} after you asked. Its first checkpoint is {}. {name} is as it was.",
        if paused { "stands ready to go on" } else { "goes on" },
        origin.name,
        origin.sequence,
        style::duration(report.branch_us),
        first.name,
    ));
    if !report.warning.is_empty() {
        paragraph::print(&format!("Note: {}", report.warning));
    }
    if paused {
        println!("Let it run: retrovisor resume {new}");
    }
    println!("Next: retrovisor log {new} · retrovisor console {new} · End it: retrovisor stop {new}");
}
