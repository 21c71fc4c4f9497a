//! The command line: a client of the gRPC interface, one file for each verb.

mod anomalies;
mod attach;
mod audit;
mod branch;
mod checkpoint;
mod checkpoint_name;
mod completions;
mod confirm;
mod console;
mod demo;
mod detach;
mod diff;
mod export;
mod global;
mod inject;
mod inspect;
mod interval;
mod list;
mod log;
mod pin;
mod power;
mod prune;
mod query;
mod remove;
mod report;
mod rollback;
mod run;
mod serve;
mod set;
mod show;
mod verify;
mod watch;

use clap::{Parser, Subcommand};
use global::Global;

use crate::error::CliError;

/// The undo history and rear-view mirror of virtual machines.
///
/// Takes incremental checkpoints of running guests, reads and evaluates each of them from outside, rolls a guest back to
/// the last good one, and ranks the likely causes of what went wrong.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  retrovisor demo                                  a demonstration, without a daemon
  retrovisor serve &                               start the daemon
  retrovisor run web --kernel vmlinuz --initrd i.gz --every 500ms
  retrovisor log web                               its checkpoints, verdicts and timelines
  retrovisor rollback web --to last-good --dry-run
  retrovisor undo web

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the demonstration: no daemon needed
    Demo(demo::DemoArgs),
    /// Runs the daemon
    Serve(serve::ServeArgs),
    /// Starts a virtual machine and manages it
    Run(run::RunArgs),
    /// Attaches to a running QEMU and manages it
    Attach(attach::AttachArgs),
    /// Ends the management of a machine; its process keeps running
    Detach(detach::DetachArgs),
    /// Lists the machines
    #[command(after_help = "Examples:\n  retrovisor list\n  retrovisor list --json")]
    List,
    /// Shows one machine
    Show(show::ShowArgs),
    /// Changes settings of a machine
    Set(set::SetArgs),
    /// Connects to a machine's serial console
    Console(console::ConsoleArgs),
    /// Pauses a machine
    Pause(power::PowerArgs),
    /// Resumes a paused machine
    Resume(power::PowerArgs),
    /// Takes a last checkpoint of a machine and ends its process
    Stop(power::StopArgs),
    /// Removes a machine and its history
    Remove(remove::RemoveArgs),
    /// Takes a checkpoint now
    Checkpoint(checkpoint::CheckpointArgs),
    /// Compares a machine's whole memory with its newest checkpoint
    Audit(audit::AuditArgs),
    /// Shows a machine's timelines, checkpoints and verdicts
    Log(log::LogArgs),
    /// Takes a machine to a checkpoint
    Rollback(rollback::RollbackArgs),
    /// Starts a new machine from a checkpoint of another one
    Branch(branch::BranchArgs),
    /// Undoes the last rollback
    Undo(rollback::UndoArgs),
    /// Undoes the last undo
    Redo(rollback::RedoArgs),
    /// Shows what was read from a checkpoint
    Inspect(inspect::InspectArgs),
    /// Shows what changed between two checkpoints
    Diff(diff::DiffArgs),
    /// Lists anomalies and incidents
    Anomalies(anomalies::AnomaliesArgs),
    /// Writes the report of a machine
    Report(report::ReportArgs),
    /// Runs an SQL query on the snapshot database
    Query(query::QueryArgs),
    /// Injects a fault into a machine
    Inject(inject::InjectArgs),
    /// Follows events
    Watch(watch::WatchArgs),
    /// Checks everything in the store against its hashes, and repairs it
    Verify(verify::VerifyArgs),
    /// Writes a checkpoint or a whole history to a file
    Export(export::ExportArgs),
    /// Imports a memory dump or an archive as a machine
    Import(export::ImportArgs),
    /// Removes checkpoints that no rule keeps, and frees their space
    Prune(prune::PruneArgs),
    /// Protects a checkpoint from pruning
    Pin(pin::PinArgs),
    /// Ends the protection of a pinned checkpoint
    Unpin(pin::PinArgs),
    /// Prints a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Runs a verb.
pub(crate) async fn run(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    match cli.verb {
        Verb::Demo(args) => demo::run(args, global).await,
        Verb::Serve(args) => Box::pin(serve::run(args, global)).await,
        Verb::Run(args) => run::run(args, global).await,
        Verb::Attach(args) => attach::run(args, global).await,
        Verb::Detach(args) => detach::run(args, global).await,
        Verb::List => list::run(global).await,
        Verb::Show(args) => show::run(args, global).await,
        Verb::Set(args) => set::run(args, global).await,
        Verb::Console(args) => console::run(args, global).await,
        Verb::Pause(args) => power::pause(args, global).await,
        Verb::Resume(args) => power::resume(args, global).await,
        Verb::Stop(args) => power::stop(args, global).await,
        Verb::Remove(args) => remove::run(args, global).await,
        Verb::Checkpoint(args) => checkpoint::run(args, global).await,
        Verb::Audit(args) => audit::run(args, global).await,
        Verb::Log(args) => log::run(args, global).await,
        Verb::Rollback(args) => rollback::rollback(args, global).await,
        Verb::Branch(args) => branch::run(args, global).await,
        Verb::Undo(args) => rollback::undo(args, global).await,
        Verb::Redo(args) => rollback::redo(args, global).await,
        Verb::Inspect(args) => inspect::run(args, global).await,
        Verb::Diff(args) => diff::run(args, global).await,
        Verb::Anomalies(args) => anomalies::run(args, global).await,
        Verb::Report(args) => report::run(args, global).await,
        Verb::Query(args) => query::run(args, global).await,
        Verb::Inject(args) => inject::run(args, global).await,
        Verb::Watch(args) => watch::run(args, global).await,
        Verb::Verify(args) => verify::run(args, global).await,
        Verb::Export(args) => export::export(args, global).await,
        Verb::Import(args) => export::import(args, global).await,
        Verb::Prune(args) => prune::run(args, global).await,
        Verb::Pin(args) => pin::run(args, true, global).await,
        Verb::Unpin(args) => pin::run(args, false, global).await,
        Verb::Completions(args) => completions::run(&args),
    }
}
