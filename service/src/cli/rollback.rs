use clap::{Args, ValueEnum};
use retrovisor_proto::v1::{ClockPolicy, Move, PresentPolicy, RedoRequest, RollbackRequest, UndoRequest};

use super::global::{Global, print_json};
use crate::client;
use crate::error::CliError;
use crate::terminal::{paragraph, style};

/// Takes a machine back to a checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "\
The present is checkpointed first: `retrovisor undo NAME` brings it back.
Examples:
  retrovisor rollback web                    to the last good checkpoint
  retrovisor rollback web --to -3 --dry-run  what going back three checkpoints would do
  retrovisor rollback web --to before-upgrade
  retrovisor rollback web --clock jump-to-now
  retrovisor rollback web --present staged   the guest stands still as shortly as can be")]
pub(crate) struct RollbackArgs {
    /// The machine
    name: String,
    /// last-good, latest, a label, the beginning of a name, @SEQUENCE, or -N for N checkpoints back
    #[arg(long, default_value = "last-good", allow_hyphen_values = true, value_name = "CHECKPOINT")]
    to: String,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
    /// Compare the whole restored memory with the checkpoint's hash before the guest runs on
    #[arg(long)]
    verify_image: bool,
    /// What the guest's clocks do: go on from the checkpoint's instant, or jump to now (kvm only)
    #[arg(long, default_value = "stand-still", value_enum)]
    clock: Clock,
    /// When the present must be safe that is left: on the disk before anything is overwritten, or copied in memory, so that
    /// the guest runs on within microseconds to milliseconds (a daemon killed in that moment loses it)
    #[arg(long, default_value = "durable", value_enum)]
    present: Present,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Present {
    Durable,
    Staged,
}

impl From<Present> for i32 {
    fn from(present: Present) -> Self {
        match present {
            Present::Durable => PresentPolicy::Durable.into(),
            Present::Staged => PresentPolicy::Staged.into(),
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

/// Undoes the last operation that moved a machine.
#[derive(Debug, Args)]
pub(crate) struct UndoArgs {
    /// The machine
    name: String,
    /// Compare the whole restored memory with the checkpoint's hash before the guest runs on
    #[arg(long)]
    verify_image: bool,
}

/// Takes the last undo back.
#[derive(Debug, Args)]
pub(crate) struct RedoArgs {
    /// The machine
    name: String,
}

pub(super) async fn rollback(args: RollbackArgs, global: &Global) -> Result<(), CliError> {
    let request = RollbackRequest {
        machine: args.name.clone(),
        checkpoint: args.to,
        dry_run: args.dry_run,
        verify_image: args.verify_image,
        clock: args.clock.into(),
        present: args.present.into(),
    };
    let client = if args.dry_run {
        client::reader(&global.store).await?
    } else {
        client::daemon(&global.store).await?
    };
    let answer = client.checkpoints().rollback(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    let journey = answer.r#move.unwrap_or_default();
    if answer.dry_run {
        let target = journey.target.clone().unwrap_or_default();
        paragraph::print(&format!(
            "Would take {} back {} checkpoints to {} #{} ({}, {}). {} pages are known to differ. The present would be \
             kept on its own timeline. Nothing was changed.",
            args.name,
            journey.steps,
            target.name,
            target.sequence,
            style::ago(target.taken_at_ms),
            style::verdict(target.verdict()),
            journey.pages_written
        ));
        return Ok(());
    }
    told(&args.name, &journey, "Undo it", "undo");
    Ok(())
}

pub(super) async fn undo(args: UndoArgs, global: &Global) -> Result<(), CliError> {
    let request = UndoRequest { machine: args.name.clone(), verify_image: args.verify_image };
    let answer = client::daemon(&global.store).await?.checkpoints().undo(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    told(&args.name, &answer.r#move.unwrap_or_default(), "Take that back", "redo");
    Ok(())
}

pub(super) async fn redo(args: RedoArgs, global: &Global) -> Result<(), CliError> {
    let request = RedoRequest { machine: args.name.clone() };
    let answer = client::daemon(&global.store).await?.checkpoints().redo(request).await?.into_inner();
    if global.json {
        return print_json(&answer);
    }
    told(&args.name, &answer.r#move.unwrap_or_default(), "Undo it", "undo");
    Ok(())
}

/// What was done, where the machine stands, and the way back.
fn told(name: &str, journey: &Move, back: &str, verb: &str) {
    let target = journey.target.clone().unwrap_or_default();
    let steps =
        if journey.steps == 0 { String::new() } else { format!(", {} checkpoints back", journey.steps) };
    paragraph::print(&format!(
        "{name} stands on {} #{} now{steps} ({} pages in {}{}).",
        target.name,
        target.sequence,
        journey.pages_written,
        style::duration(journey.rollback_us),
        if journey.new_process { ", in a new process" } else { "" },
    ));
    match journey.image_matches {
        Some(true) => println!("Its memory matches the checkpoint bit for bit."),
        Some(false) => println!("Its memory does NOT match the checkpoint's hash."),
        None => {}
    }
    match &journey.present {
        Some(present) => paragraph::print(&format!(
            "The present was kept as {} #{}. {back}: retrovisor {verb} {name}",
            present.name, present.sequence
        )),
        None => paragraph::print("Its process was gone: what it did after its last checkpoint is lost."),
    }
}
