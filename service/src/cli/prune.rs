use std::path::{Path, PathBuf};

use clap::Args;
use retrovisor_proto::v1::prune_response::Step;
use retrovisor_proto::v1::{MachinePrune, PrunePlan, PruneReport, PruneRequest, RetentionPolicy};

use super::confirm::{confirm, refuse_unattended};
use super::global::{Global, print_json};
use crate::client::{self, Client};
use crate::error::CliError;
use crate::terminal::progress::Progress;
use crate::terminal::{paragraph, quantity, table};

/// Removes the checkpoints that no rule keeps, and frees their space. Machines keep running meanwhile.
///
/// Always kept: a machine's current checkpoint, its newest, pinned ones and the last good one. The plan is shown first;
/// what is removed cannot be brought back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor prune --dry-run                      what would be removed, and how much space is freed
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
    /// One for each of this many hours [default: 24]
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u64>,
    /// One for each of this many days [default: 7]
    #[arg(long, value_name = "N")]
    keep_daily: Option<u64>,
    /// One for each of this many weeks [default: 4]
    #[arg(long, value_name = "N")]
    keep_weekly: Option<u64>,
    /// One for each of this many months [default: 6]
    #[arg(long, value_name = "N")]
    keep_monthly: Option<u64>,
    /// Those with a label [default: true]
    #[arg(long, value_name = "BOOL")]
    keep_labelled: Option<bool>,
    /// Bad ones, and those that incidents name, for this many days [default: forever]
    #[arg(long, value_name = "DAYS")]
    keep_bad_days: Option<u64>,
    /// Those that undo and redo need, for this many operations back [default: 10]
    #[arg(long, value_name = "N")]
    undo_depth: Option<u64>,
    /// Read the rules from a TOML file; the options above override it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

pub(super) async fn run(args: PruneArgs, global: &Global) -> Result<(), CliError> {
    let policy = args.rules()?;
    let store = global.store()?;
    let request = |dry_run| PruneRequest {
        machine: args.name.clone().unwrap_or_default(),
        policy: Some(policy),
        dry_run,
    };
    if args.dry_run {
        let plan = ask(&client::reader(&store).await?, request(true), global.json).await?.0;
        if global.json {
            return print_json(&plan);
        }
        print_plan(&plan);
        outln!("Nothing was changed.");
        return Ok(());
    }
    let client = client::writer(&store).await?;
    if !args.yes {
        refuse_unattended("prune removes checkpoints forever")?;
        print_plan(&ask(&client, request(true), global.json).await?.0);
        confirm("Remove these checkpoints? They cannot be brought back.", "to prune")?;
    }
    let (plan, report) = ask(&client, request(false), global.json).await?;
    let report = report
        .ok_or_else(|| CliError::failed("the prune was interrupted; steps that were done stay done"))?;
    if global.json {
        return print_json(&report);
    }
    if args.yes {
        print_plan(&plan);
    }
    print_report(report);
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
    let bar = Progress::new(json);
    let (mut plan, mut report) = (PrunePlan::default(), None);
    while let Some(message) = stream.message().await? {
        match message.step {
            Some(Step::Plan(message)) => plan = message,
            Some(Step::Report(message)) => report = Some(message),
            Some(Step::Progress(progress)) => bar.show(progress.done, progress.total, &progress.step),
            None => {}
        }
    }
    Ok((plan, report))
}

fn print_plan(plan: &PrunePlan) {
    let rows: Vec<_> = plan.machines.iter().map(row).collect();
    table::print(&["machine", "kept", "removed", "of these bad", "oldest removed", "kept by"], &rows);
    paragraph::print(&format!(
        "About {} are freed: {} of the packs, {} of the catalogue. {} of the packs are unused afterwards in total. \
         Meanwhile {} must be available on the disk, those of the store's reserve included.",
        quantity::bytes(plan.pack_bytes + plan.catalogue_bytes),
        quantity::bytes(plan.pack_bytes),
        quantity::bytes(plan.catalogue_bytes),
        quantity::bytes(plan.garbage_bytes),
        quantity::bytes(plan.needed_bytes),
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
        oldest.map_or_else(|| "-".to_owned(), quantity::ago),
        reasons.join(", "),
    ]
}

fn print_report(report: PruneReport) {
    outln!(
        "{} removed; the store has {} now, {} before.",
        quantity::count(report.checkpoints, "checkpoint"),
        quantity::bytes(report.stored_bytes),
        quantity::bytes(report.stored_bytes_before)
    );
    if report.out_of_space {
        outln!("There was too little space to free all of it: repeat the prune.");
    }
    if report.skipped > 0 {
        outln!("{} of the plan were kept: they are current or pinned now.", report.skipped);
    }
}
