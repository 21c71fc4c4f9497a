use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use retrovisor_proto::v1::prune_response::Step;
use retrovisor_proto::v1::{MachinePrune, PrunePlan, PruneReport, PruneRequest, RetentionPolicy};

use super::global::{Global, print_json};
use crate::client::{self, Client};
use crate::error::CliError;
use crate::terminal::progress::Progress;
use crate::terminal::{paragraph, style, table};

/// Removes the checkpoints that no rule keeps, and gives their space back. Machines run on meanwhile.
///
/// Always kept: where a machine stands, its newest checkpoint, pinned ones and the last good one. The plan is shown
/// first; what is removed cannot be brought back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor prune --dry-run                      what would go, and how much comes back
  retrovisor prune web --keep-last 50 --keep-hourly 24 --yes
  retrovisor prune --policy retention.toml --yes  keep_last = 50, keep_bad_days = 30, …")]
pub(crate) struct PruneArgs {
    /// The machine; all of them when none is named
    name: Option<String>,
    /// Only show the plan
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// The newest checkpoints of each machine [default: 200]
    #[arg(long, value_name = "N")]
    keep_last: Option<u64>,
    /// One for each of so many hours [default: 24]
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u64>,
    /// One for each of so many days [default: 7]
    #[arg(long, value_name = "N")]
    keep_daily: Option<u64>,
    /// One for each of so many weeks [default: 4]
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u64>,
    /// One for each of so many months [default: 6]
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u64>,
    /// Those with a label [default: true]
    #[arg(long, value_name = "BOOL")]
    keep_labelled: Option<bool>,
    /// Bad ones, and those that incidents name, for so many days [default: for ever]
    #[arg(long, value_name = "DAYS")]
    keep_bad_days: Option<u64>,
    /// Those that undo and redo need, for so many operations back [default: 10]
    #[arg(long, value_name = "N")]
    undo_depth: Option<u64>,
    /// Reads the rules from a TOML file; options above override it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

pub(super) async fn run(args: PruneArgs, global: &Global) -> Result<(), CliError> {
    let policy = args.rules()?;
    let request = |dry_run| PruneRequest {
        machine: args.name.clone().unwrap_or_default(),
        policy: Some(policy),
        dry_run,
    };
    if args.dry_run {
        let plan = ask(&client::reader(&global.store).await?, request(true), global.json).await?.0;
        if global.json {
            return print_json(&plan);
        }
        show(&plan);
        println!("Nothing was changed.");
        return Ok(());
    }
    let client = client::writer(&global.store).await?;
    if !args.yes {
        confirm(&ask(&client, request(true), global.json).await?.0)?;
    }
    let (plan, report) = ask(&client, request(false), global.json).await?;
    let report = report.ok_or_else(|| CliError::failed("the prune was cut short; what was done is done"))?;
    if global.json {
        return print_json(&report);
    }
    if args.yes {
        show(&plan);
    }
    told(report);
    Ok(())
}

impl PruneArgs {
    fn rules(&self) -> Result<RetentionPolicy, CliError> {
        let file = self.policy.as_deref().map(read).transpose()?.unwrap_or_default();
        Ok(RetentionPolicy {
            keep_last: self.keep_last.or(file.keep_last),
            keep_hourly: self.keep_hourly.or(file.keep_hourly),
            keep_daily: self.keep_daily.or(file.keep_daily),
            keep_weekly: self.keep_weekly.or(file.keep_weekly),
            keep_monthly: self.keep_monthly.or(file.keep_monthly),
            keep_labelled: self.keep_labelled.or(file.keep_labelled),
            keep_bad_days: self.keep_bad_days.or(file.keep_bad_days),
            undo_depth: self.undo_depth.or(file.undo_depth),
        })
    }
}

/// The rules of a file; those that it does not name are absent.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rules {
    keep_last: Option<u64>,
    keep_hourly: Option<u64>,
    keep_daily: Option<u64>,
    keep_weekly: Option<u64>,
    keep_monthly: Option<u64>,
    keep_labelled: Option<bool>,
    keep_bad_days: Option<u64>,
    undo_depth: Option<u64>,
}

fn read(path: &Path) -> Result<Rules, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::failed(format!("cannot read {}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| CliError::failed(format!("{}: {error}", path.display())))
}

/// Sends the request; the plan, and the report when it was carried out.
async fn ask(
    client: &Client,
    request: PruneRequest,
    json: bool,
) -> Result<(PrunePlan, Option<PruneReport>), CliError> {
    let mut stream = client.store().prune(request).await?.into_inner();
    let mut bar = Progress::new(json);
    let (mut plan, mut report) = (PrunePlan::default(), None);
    while let Some(message) = stream.message().await? {
        match message.step {
            Some(Step::Plan(told)) => plan = told,
            Some(Step::Report(told)) => report = Some(told),
            Some(Step::Progress(progress)) => bar.show(progress.done, progress.total, progress.step),
            None => {}
        }
    }
    Ok((plan, report))
}

fn show(plan: &PrunePlan) {
    let rows: Vec<_> = plan.machines.iter().map(row).collect();
    table::print(&["machine", "stay", "go", "of these bad", "oldest that goes", "kept by"], &rows);
    paragraph::print(&format!(
        "About {} come back: {} in packs at once, {} of the catalogue. {} of the packs become garbage in all.",
        style::bytes(plan.pack_bytes + plan.catalogue_bytes),
        style::bytes(plan.pack_bytes),
        style::bytes(plan.catalogue_bytes),
        style::bytes(plan.garbage_bytes),
    ));
}

fn row(machine: &MachinePrune) -> Vec<String> {
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for reason in machine.kept.iter().flat_map(|kept| &kept.reasons) {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += 1,
            None => reasons.push((reason, 1)),
        }
    }
    let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let oldest = machine.removed.iter().map(|removed| removed.taken_at_ms).min();
    vec![
        machine.machine.clone(),
        machine.kept.len().to_string(),
        machine.removed.len().to_string(),
        machine.removed.iter().filter(|removed| removed.quarantined).count().to_string(),
        oldest.map_or_else(|| "-".to_owned(), style::ago),
        reasons.join(", "),
    ]
}

/// Shows the plan and asks, where somebody can answer.
fn confirm(plan: &PrunePlan) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::refused(
            "prune removes checkpoints for ever, and nobody is here to ask",
            "Look first with --dry-run, then say --yes",
        ));
    }
    show(plan);
    eprint!("Remove these checkpoints? They cannot be brought back. [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| CliError::failed(error.to_string()))?;
    if answer.trim().eq_ignore_ascii_case("y") {
        return Ok(());
    }
    Err(CliError::refused("nothing was removed", "Say y, or --yes, to prune"))
}

fn told(report: PruneReport) {
    println!(
        "{} checkpoints removed; the store has {} now, {} before.",
        report.checkpoints,
        style::bytes(report.stored_bytes),
        style::bytes(report.stored_bytes_before)
    );
    if report.passed_over > 0 {
        println!(
            "{} of the plan stayed: a machine went there meanwhile, or they were pinned.",
            report.passed_over
        );
    }
}
