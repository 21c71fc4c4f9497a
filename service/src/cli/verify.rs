use clap::Args;
use retrovisor_proto::v1::repair_response::Step;
use retrovisor_proto::v1::{LostCheckpoint, RepairPlan, RepairReport, RepairRequest, VerifyRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::progress::Progress;
use crate::terminal::{paragraph, style};

/// Reads everything in the store back and checks it against its hashes. Works without a daemon, too.
///
/// With --repair, contents that are there a second time are linked anew, what follows from something else is derived,
/// and checkpoints that cannot be saved are marked: they are refused as targets, all others stay usable.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor verify
  retrovisor verify --repair --dry-run     what a repair would do
  retrovisor verify --repair")]
pub(crate) struct VerifyArgs {
    /// Puts in order what can be put in order
    #[arg(long)]
    repair: bool,
    /// Only says what the repair would do
    #[arg(long, requires = "repair")]
    dry_run: bool,
}

pub(super) async fn run(args: VerifyArgs, global: &Global) -> Result<(), CliError> {
    if args.repair { repair(args.dry_run, global).await } else { check(global).await }
}

async fn check(global: &Global) -> Result<(), CliError> {
    let client = client::reader(&global.store).await?;
    let mut stream = client.store().verify(VerifyRequest {}).await?.into_inner();
    let mut bar = Progress::new(global.json);
    let mut last = None;
    while let Some(progress) = stream.message().await? {
        bar.show(progress.checked_pages, progress.total_pages, "contents checked");
        last = Some(progress);
    }
    drop(bar);
    let report =
        last.filter(|last| last.finished).ok_or_else(|| CliError::failed("the check was cut short"))?;
    if global.json {
        print_json(&report)?;
    } else {
        println!(
            "{} checkpoints, {} contents, {} on disk.",
            report.checkpoints,
            report.checked_pages,
            style::bytes(report.stored_bytes)
        );
        for damage in &report.damaged {
            println!("{damage}");
        }
    }
    if report.damaged.is_empty() {
        if !global.json {
            println!("Everything matches its hash.");
        }
        return Ok(());
    }
    let what = format!("{} places are damaged; what is not named above is intact", report.damaged.len());
    Err(CliError::failed(format!("{what}. See what can be mended: retrovisor verify --repair --dry-run")))
}

async fn repair(dry_run: bool, global: &Global) -> Result<(), CliError> {
    let client =
        if dry_run { client::reader(&global.store).await? } else { client::writer(&global.store).await? };
    let mut stream = client.store().repair(RepairRequest { dry_run }).await?.into_inner();
    let mut bar = Progress::new(global.json);
    let (mut plan, mut report) = (None, None);
    while let Some(message) = stream.message().await? {
        match message.step {
            Some(Step::Progress(progress)) => {
                bar.show(progress.checked_pages, progress.total_pages, "contents checked");
            }
            Some(Step::Plan(told)) => plan = Some(told),
            Some(Step::Report(told)) => report = Some(told),
            None => {}
        }
    }
    drop(bar);
    let cut = || CliError::failed("the repair was cut short; start it again");
    let plan: RepairPlan = plan.ok_or_else(cut)?;
    if dry_run {
        if global.json {
            return print_json(&plan);
        }
        show(&plan);
        return Ok(());
    }
    let report: RepairReport = report.ok_or_else(cut)?;
    if global.json {
        print_json(&report)?;
    } else {
        told(&plan, &report);
    }
    let open = report.lost.len() + report.failed.len() + plan.beyond_repair.len();
    if open == 0 {
        return Ok(());
    }
    Err(CliError::failed("not everything could be mended; what is not named above is intact"))
}

fn show(plan: &RepairPlan) {
    if plan.items.is_empty() && plan.lost.is_empty() && plan.beyond_repair.is_empty() {
        println!("Everything matches its hash: there is nothing to repair.");
        return;
    }
    for item in &plan.items {
        paragraph::print(&format!("{}: {}", item.action, item.damage));
    }
    lost(&plan.lost);
    for damage in &plan.beyond_repair {
        paragraph::print(&format!("beyond repair: {damage}"));
    }
    println!("Nothing was changed. Do it: retrovisor verify --repair");
}

fn told(plan: &RepairPlan, report: &RepairReport) {
    println!("{} of {} places were put in order.", report.repaired, plan.items.len());
    for damage in &report.failed {
        paragraph::print(&format!("not any more possible: {damage}"));
    }
    for name in &report.found_again {
        println!("{name} is whole again.");
    }
    lost(&report.lost);
    for damage in &plan.beyond_repair {
        paragraph::print(&format!("beyond repair: {damage}"));
    }
}

fn lost(lost: &[LostCheckpoint]) {
    for checkpoint in lost {
        paragraph::print(&format!("{} is lost: {}", checkpoint.name, checkpoint.what.join("; ")));
    }
}
