use clap::Args;
use retrovisor_proto::v1::{RemoveMachineRequest, RemoveMachineResponse};

use super::confirm::{confirm, refuse_unattended};
use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, quantity};

/// Removes a machine that does not run, with its whole history. Works without a daemon, too.
///
/// The plan is shown first. What is removed cannot be brought back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor remove web --dry-run
  retrovisor stop web && retrovisor remove web --yes")]
pub(crate) struct RemoveArgs {
    /// The machine
    name: String,
    /// Only show the plan
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

pub(super) async fn run(args: RemoveArgs, global: &Global) -> Result<(), CliError> {
    let store = global.store()?;
    let request = |dry_run| RemoveMachineRequest { machine: args.name.clone(), dry_run };
    if args.dry_run {
        let plan = client::reader(&store).await?.machines().remove_machine(request(true)).await?.into_inner();
        if global.json {
            return print_json(&plan);
        }
        print_plan(&args.name, &plan);
        outln!("Nothing was changed.");
        return Ok(());
    }
    let client = client::writer(&store).await?;
    if !args.yes {
        refuse_unattended("remove removes a machine forever")?;
        print_plan(&args.name, &client.machines().remove_machine(request(true)).await?.into_inner());
        confirm("Remove this machine? It cannot be brought back.", "to remove it")?;
    }
    let removed = client.machines().remove_machine(request(false)).await?.into_inner();
    if global.json {
        return print_json(&removed);
    }
    paragraph::print(&format!(
        "{} and its {} are removed. {} were freed.",
        args.name,
        quantity::count(removed.checkpoints, "checkpoint"),
        quantity::bytes(removed.freed_bytes)
    ));
    if removed.out_of_space {
        paragraph::print(
            "There was too little space to rewrite all packs, so that memory of the machine is still in them: \
             run `retrovisor prune` when there is more.",
        );
    }
    Ok(())
}

fn print_plan(name: &str, plan: &RemoveMachineResponse) {
    paragraph::print(&format!(
        "{name} has {}, which added {} to the store. All of it{} would be removed.",
        quantity::count(plan.checkpoints, "checkpoint"),
        quantity::bytes(plan.stored_bytes),
        if plan.paths.is_empty() { "" } else { ", and the files below," }
    ));
    for path in &plan.paths {
        paragraph::property("file", path);
    }
    if !plan.branches.is_empty() {
        paragraph::print(&format!("Branched from it, and kept: {}.", plan.branches.join(", ")));
    }
}
