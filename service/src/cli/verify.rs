use clap::Args;
use retrovisor_proto::v1::repair_response::Step;
use retrovisor_proto::v1::{LostCheckpoint, RepairPlan, RepairReport, RepairRequest, VerifyRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::progress::Progress;
use crate::terminal::{paragraph, quantity};

/// Reads everything in the store and compares it with its hashes. Works without a daemon, too.
///
/// With --repair, contents of which there is a second copy are linked to it, derived data is rebuilt, and checkpoints that
/// cannot be repaired are marked as lost: they are refused as targets, all others stay usable.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor verify
  retrovisor verify --repair --dry-run     what a repair would do
  retrovisor verify --repair")]
pub(crate) struct VerifyArgs {
    /// Repair what can be repaired
    #[arg(long)]
    repair: bool,
    /// Only report what the repair would do
    #[arg(long, requires = "repair")]
    dry_run: bool,
}

pub(super) async fn run(args: VerifyArgs, global: &Global) -> Result<(), CliError> {
    if args.repair { repair(args.dry_run, global).await } else { check(global).await }
}

async fn check(global: &Global) -> Result<(), CliError> {
    let client = client::reader(&global.store()?).await?;
    let mut stream = client.store().verify(VerifyRequest {}).await?.into_inner();
    let bar = Progress::new(global.json);
    let mut last = None;
    while let Some(progress) = stream.message().await? {
        bar.show(progress.checked_pages, progress.total_pages, "contents checked");
        last = Some(progress);
    }
    drop(bar);
    let report =
        last.filter(|last| last.finished).ok_or_else(|| CliError::failed("the check was interrupted"))?;
    if global.json {
        print_json(&report)?;
    } else {
        outln!(
            "{}, {}, {} on disk.",
            quantity::count(report.checkpoints, "checkpoint"),
            quantity::count(report.checked_pages, "content"),
            quantity::bytes(report.stored_bytes)
        );
        for damage in &report.damaged {
            paragraph::print(damage);
        }
    }
    if report.damaged.is_empty() {
        if !global.json {
            outln!("Everything matches its hash.");
        }
        return Ok(());
    }
    Err(CliError::failed(format!(
        "{} found; everything else is intact. See what can be repaired: retrovisor verify --repair --dry-run",
        quantity::count(report.damaged.len() as u64, "damaged place")
    )))
}

async fn repair(dry_run: bool, global: &Global) -> Result<(), CliError> {
    let client = if dry_run {
        client::reader(&global.store()?).await?
    } else {
        client::writer(&global.store()?).await?
    };
    let mut stream = client.store().repair(RepairRequest { dry_run }).await?.into_inner();
    let bar = Progress::new(global.json);
    let (mut plan, mut report) = (None, None);
    while let Some(message) = stream.message().await? {
        match message.step {
            Some(Step::Progress(progress)) => {
                bar.show(progress.checked_pages, progress.total_pages, "contents checked");
            }
            Some(Step::Plan(message)) => plan = Some(message),
            Some(Step::Report(message)) => report = Some(message),
            None => {}
        }
    }
    drop(bar);
    let cut = || CliError::failed("the repair was interrupted; start it again");
    let plan: RepairPlan = plan.ok_or_else(cut)?;
    if dry_run {
        if global.json {
            return print_json(&plan);
        }
        print_plan(&plan);
        return Ok(());
    }
    let report: RepairReport = report.ok_or_else(cut)?;
    if global.json {
        print_json(&report)?;
    } else {
        print_report(&plan, &report);
    }
    let open = report.lost.len() + report.failed.len() + plan.beyond_repair.len();
    if open == 0 {
        return Ok(());
    }
    Err(CliError::failed("not everything could be repaired; everything that is not named above is intact"))
}

fn print_plan(plan: &RepairPlan) {
    if plan.items.is_empty() && plan.lost.is_empty() && plan.beyond_repair.is_empty() {
        outln!("Everything matches its hash. There is nothing to repair.");
        return;
    }
    for item in &plan.items {
        paragraph::print(&format!("{}: {}", item.action, item.damage));
    }
    print_lost(&plan.lost);
    for damage in &plan.beyond_repair {
        paragraph::print(&format!("cannot be repaired: {damage}"));
    }
    outln!("Nothing was changed. Do it: retrovisor verify --repair");
}

fn print_report(plan: &RepairPlan, report: &RepairReport) {
    outln!("{} of {} repaired.", report.repaired, plan.items.len());
    for damage in &report.failed {
        paragraph::print(&format!("not repaired: {damage}"));
    }
    for name in &report.recovered {
        outln!("{name} is complete again.");
    }
    print_lost(&report.lost);
    for damage in &plan.beyond_repair {
        paragraph::print(&format!("cannot be repaired: {damage}"));
    }
}

fn print_lost(lost: &[LostCheckpoint]) {
    for checkpoint in lost {
        paragraph::print(&format!("{} is lost: {}", checkpoint.name, checkpoint.what.join("; ")));
    }
}
