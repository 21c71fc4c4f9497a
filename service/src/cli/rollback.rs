use clap::{Args, ValueEnum};
use retrovisor_proto::v1::{ClockPolicy, CurrentPolicy, RedoRequest, Rollback, RollbackRequest, UndoRequest};

use super::checkpoint_name::CheckpointName;
use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, quantity, verdict};

/// Takes a machine to a checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "\
The current state is checkpointed first: `retrovisor undo NAME` goes back to it. A machine without a process is
started again with the checkpoint's state.
Examples:
  retrovisor rollback web                    to the last good checkpoint
  retrovisor rollback web --to -3 --dry-run  what going back three checkpoints would change
  retrovisor rollback web --to before-upgrade
  retrovisor rollback web --clock jump-to-now
  retrovisor rollback web --current staged   with the shortest pause")]
pub(crate) struct RollbackArgs {
    /// The machine
    name: String,
    /// last-good, latest, a label, the beginning of a name, @SEQUENCE, or -N for N checkpoints back
    #[arg(long, default_value = "last-good", allow_hyphen_values = true, value_name = "CHECKPOINT")]
    to: CheckpointName,
    /// Only report what would be done
    #[arg(long)]
    dry_run: bool,
    /// Compare the whole restored memory with the checkpoint's hash before the guest is resumed
    #[arg(long)]
    verify_image: bool,
    /// The guest's clocks: continue from the checkpoint's instant, or jump to now (kvm only)
    #[arg(long, default_value = "stand-still", value_enum)]
    clock: Clock,
    /// When the current state must be on disk: before anything is overwritten, or, with a pause of microseconds to
    /// milliseconds, after the guest was resumed (lost if the daemon is killed before that)
    #[arg(long, default_value = "durable", value_enum)]
    current: Current,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Current {
    Durable,
    Staged,
}

impl From<Current> for i32 {
    fn from(current: Current) -> Self {
        match current {
            Current::Durable => CurrentPolicy::Durable.into(),
            Current::Staged => CurrentPolicy::Staged.into(),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Clock {
    StandStill,
    JumpToNow,
}

impl From<Clock> for i32 {
    fn from(clock: Clock) -> Self {
        match clock {
            Clock::StandStill => ClockPolicy::StandStill.into(),
            Clock::JumpToNow => ClockPolicy::JumpToNow.into(),
        }
    }
}

/// Undoes the last rollback of a machine. Each further undo goes back one more.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor undo web\n  retrovisor undo web --verify-image")]
pub(crate) struct UndoArgs {
    /// The machine
    name: String,
    /// Compare the whole restored memory with the checkpoint's hash before the guest is resumed
    #[arg(long)]
    verify_image: bool,
}

/// Undoes the last undo of a machine.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor redo web\n  retrovisor redo web --verify-image")]
pub(crate) struct RedoArgs {
    /// The machine
    name: String,
    /// Compare the whole restored memory with the checkpoint's hash before the guest is resumed
    #[arg(long)]
    verify_image: bool,
}

pub(super) async fn rollback(args: RollbackArgs, global: &Global) -> Result<(), CliError> {
    let request = RollbackRequest {
        machine: args.name.clone(),
        checkpoint: args.to.0,
        dry_run: args.dry_run,
        verify_image: args.verify_image,
        clock: args.clock.into(),
        current: args.current.into(),
    };
    let client = if args.dry_run {
        client::reader(&global.store()?).await?
    } else {
        client::daemon(&global.store()?).await?
    };
    let answer = client.checkpoints().rollback(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    let rollback = answer.rollback.unwrap_or_default();
    if answer.dry_run {
        let target = rollback.target.clone().unwrap_or_default();
        let process = if rollback.new_process {
            "It has no process: a new one would be started with that state."
        } else {
            "The current state would be kept on its own timeline."
        };
        paragraph::print(&format!(
            "Would take {} back {} to {} #{} ({}, {}). {} pages are known to differ. {process} Nothing was changed.",
            args.name,
            quantity::count(rollback.steps.into(), "checkpoint"),
            target.name,
            target.sequence,
            quantity::ago(target.taken_at_ms),
            verdict::word(target.verdict()),
            rollback.pages_written
        ));
        return Ok(());
    }
    print(&args.name, &rollback, "Undo it", "undo");
    Ok(())
}

pub(super) async fn undo(args: UndoArgs, global: &Global) -> Result<(), CliError> {
    let request = UndoRequest { machine: args.name.clone(), verify_image: args.verify_image };
    let answer = client::daemon(&global.store()?).await?.checkpoints().undo(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    print(&args.name, &answer.rollback.unwrap_or_default(), "Undo the undo", "redo");
    Ok(())
}

pub(super) async fn redo(args: RedoArgs, global: &Global) -> Result<(), CliError> {
    let request = RedoRequest { machine: args.name.clone(), verify_image: args.verify_image };
    let answer = client::daemon(&global.store()?).await?.checkpoints().redo(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    print(&args.name, &answer.rollback.unwrap_or_default(), "Undo it", "undo");
    Ok(())
}

/// What was done, the state that was kept, and how to go back to it.
fn print(name: &str, rollback: &Rollback, back: &str, verb: &str) {
    let target = rollback.target.clone().unwrap_or_default();
    let steps = match rollback.steps {
        0 => String::new(),
        steps => format!(", {} back", quantity::count(steps.into(), "checkpoint")),
    };
    paragraph::print(&format!(
        "{name} is at {} #{} now{steps} ({} in {}{}).",
        target.name,
        target.sequence,
        quantity::count(rollback.pages_written, "page"),
        quantity::duration(rollback.rollback_us),
        if rollback.new_process { ", in a new process" } else { "" },
    ));
    match rollback.image_matches {
        Some(true) => outln!("Its memory matches the checkpoint bit for bit."),
        Some(false) => outln!("Its memory does NOT match the checkpoint's hash."),
        None => {}
    }
    if let Some(current) = &rollback.current {
        paragraph::print(&format!(
            "The state before is kept as {} #{}. {back}: retrovisor {verb} {name}",
            current.name, current.sequence
        ));
    } else {
        outln!("It had no process, so there was no state to keep but its newest checkpoint.");
    }
}
