//! The command line: a client of the gRPC interface, one file a verb.

mod anomalies;
mod attach;
mod branch;
mod checkpoint;
mod completions;
mod console;
mod demo;
mod diff;
mod export;
mod global;
mod inject;
mod inspect;
mod list;
mod log;
mod pin;
mod power;
mod prune;
mod query;
mod report;
mod rollback;
mod run;
mod serve;
mod show;
mod verify;
mod watch;

use clap::{Parser, Subcommand};
use global::Global;

use crate::error::CliError;

/// The undo history and rear-view mirror of virtual machines.
///
/// Takes incremental checkpoints of running guests, reads and judges every one of them from outside,
/// takes a guest back to the last good one, and explains what went wrong first.
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
  retrovisor demo                                  see the whole story on one screen
  retrovisor serve &                               start the daemon
  retrovisor run web --kernel vmlinuz --initrd i.gz --every 500ms
  retrovisor log web                               its checkpoints, verdicts and timelines
  retrovisor rollback web --to last-good --dry-run
  retrovisor undo web

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows the whole story on one screen: no daemon needed
    Demo(demo::DemoArgs),
    /// Runs the daemon
    Serve(serve::ServeArgs),
    /// Starts a virtual machine under care
    Run(run::RunArgs),
    /// Takes a running QEMU into care
    Attach(attach::AttachArgs),
    /// Lists the machines
    List,
    /// Shows one machine
    Show(show::ShowArgs),
    /// Talks to a machine's serial console
    Console(console::ConsoleArgs),
    /// Pauses a machine
    Pause(power::PowerArgs),
    /// Lets a paused machine run on
    Resume(power::PowerArgs),
    /// Checkpoints a machine a last time and ends it
    Stop(power::PowerArgs),
    /// Takes a checkpoint now
    Checkpoint(checkpoint::CheckpointArgs),
    /// Shows a machine's timelines, checkpoints and verdicts
    Log(log::LogArgs),
    /// Takes a machine back to a checkpoint
    Rollback(rollback::RollbackArgs),
    /// Starts a second machine from a checkpoint of a first
    Branch(branch::BranchArgs),
    /// Undoes the last operation that moved a machine
    Undo(rollback::UndoArgs),
    /// Takes the last undo back
    Redo(rollback::RedoArgs),
    /// Shows what was read from a checkpoint
    Inspect(inspect::InspectArgs),
    /// Shows what changed between two checkpoints
    Diff(diff::DiffArgs),
    /// Lists anomalies and incidents
    Anomalies(anomalies::AnomaliesArgs),
    /// Writes the report of a machine
    Report(report::ReportArgs),
    /// Asks the snapshot database in SQL
    Query(query::QueryArgs),
    /// Hurts a machine on purpose
    Inject(inject::InjectArgs),
    /// Follows what happens, as it happens
    Watch(watch::WatchArgs),
    /// Checks everything in the store against its hashes, and repairs it
    Verify(verify::VerifyArgs),
    /// Writes a checkpoint or a whole history to a file
    Export(export::ExportArgs),
    /// Brings a dump of memory or an archive in as a machine
    Import(export::ImportArgs),
    /// Removes checkpoints that no rule keeps, and gives their space back
    Prune(prune::PruneArgs),
    /// Keeps a checkpoint from being pruned
    Pin(pin::PinArgs),
    /// Lets a pinned checkpoint be pruned again
    Unpin(pin::PinArgs),
    /// Prints a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Does what the command line says.
pub(crate) async fn run(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    match cli.verb {
        Verb::Demo(args) => demo::run(args, global).await,
        Verb::Serve(args) => serve::run(args, global).await,
        Verb::Run(args) => run::run(args, global).await,
        Verb::Attach(args) => attach::run(args, global).await,
        Verb::List => list::run(global).await,
        Verb::Show(args) => show::run(args, global).await,
        Verb::Console(args) => console::run(args, global).await,
        Verb::Pause(args) => power::pause(args, global).await,
        Verb::Resume(args) => power::resume(args, global).await,
        Verb::Stop(args) => power::stop(args, global).await,
        Verb::Checkpoint(args) => checkpoint::run(args, global).await,
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
        Verb::Completions(args) => {
            completions::run(&args);
            Ok(())
        }
    }
}
