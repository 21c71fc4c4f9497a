//! The acts: learn, hurt, notice, go back, undo once.

use std::time::{Duration, Instant};

use retrovisor_analytics::Config;
use retrovisor_proto::v1::inject_request::Fault;
use retrovisor_proto::v1::watch_response::Event;
use retrovisor_proto::v1::{
    Checkpoint, ConsoleCommand, Incident, InjectRequest, Move, QueryRequest, RedoRequest, RollbackRequest,
    SyscallRedirect, UndoRequest, Verdict, WatchRequest, WatchResponse, cell,
};
use tonic::Streaming;

use super::MACHINE;
use super::console::Console;
use super::screen::Screen;
use super::summary::{FaultSummary, Summary};
use crate::client::Client;
use crate::error::CliError;
use crate::terminal::style;

/// Checkpoints after the baseline before the first fault, and between the faults.
const CALM_CHECKPOINTS: u64 = 8;
/// A fault that is not confirmed after so many checkpoints was missed.
const NOTICE_CHECKPOINTS_MAX: u64 = 16;
/// The stream of events is never quiet for so long while the guest is checkpointed.
const EVENT_PATIENCE: Duration = Duration::from_secs(30);
/// A guest that was taken back says its next tick within this time.
const TICK_PATIENCE: Duration = Duration::from_secs(15);

/// Everything that the acts share.
pub(super) struct Stage {
    client: Client,
    events: Streaming<WatchResponse>,
    pub(super) console: Console,
    pub(super) screen: Screen,
    pub(super) summary: Summary,
    /// The newest checkpoint.
    newest: Checkpoint,
    /// Last good and first bad checkpoint of each incident.
    pub(super) incidents: Vec<(String, String)>,
    /// Whether the guest is hurt now: alarms are right then.
    hurt: bool,
}

impl Stage {
    pub(super) async fn new(
        client: Client,
        console: Console,
        screen: Screen,
        summary: Summary,
    ) -> Result<Self, CliError> {
        let request = WatchRequest { machine: MACHINE.to_owned() };
        let events = client.watch().watch(request).await?.into_inner();
        Ok(Self {
            client,
            events,
            console,
            screen,
            summary,
            newest: Checkpoint::default(),
            incidents: Vec::new(),
            hurt: false,
        })
    }

    /// The next event; checkpoints are shown and counted on the way.
    async fn next(&mut self) -> Result<Event, CliError> {
        let quiet = || CliError::failed("nothing happened for 30 s: the guest or its keeper hangs");
        let event =
            tokio::time::timeout(EVENT_PATIENCE, self.events.message()).await.map_err(|_| quiet())??;
        match event.and_then(|event| event.event) {
            Some(Event::Checkpoint(taken)) => {
                if taken.kind != "before-rollback" {
                    self.summary.count(&taken, self.hurt);
                }
                self.screen.checkpoint(&taken);
                self.newest = taken.clone();
                Ok(Event::Checkpoint(taken))
            }
            Some(Event::Trouble(what)) => Err(CliError::failed(what)),
            Some(event) => Ok(event),
            None => Err(CliError::failed("the stream of events ended")),
        }
    }

    async fn checkpoints(&mut self, count: u64) -> Result<(), CliError> {
        let mut seen = 0;
        while seen < count {
            if let Event::Checkpoint(_) = self.next().await? {
                seen += 1;
            }
        }
        Ok(())
    }

    /// Waits until a fault is confirmed. Returns the incident and how many checkpoints that took.
    async fn notice(&mut self) -> Result<(Incident, u64), CliError> {
        let mut delay = 0;
        loop {
            match self.next().await? {
                Event::Checkpoint(_) if delay >= NOTICE_CHECKPOINTS_MAX => {
                    return Err(CliError::failed(format!(
                        "the fault was not noticed within {delay} checkpoints"
                    )));
                }
                Event::Checkpoint(_) => delay += 1,
                Event::Incident(incident) => return Ok((incident, delay)),
                _ => {}
            }
        }
    }

    /// The guest's first tick after a mark.
    async fn first_tick(&self, mark: usize) -> Result<(u64, String), CliError> {
        let began = Instant::now();
        while began.elapsed() < TICK_PATIENCE {
            if let Some(found) = self.console.first_tick_line(mark) {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(CliError::failed("the guest does not tick any more"))
    }

    async fn inject(&mut self, fault: Fault) -> Result<(), CliError> {
        let request = InjectRequest { machine: MACHINE.to_owned(), fault: Some(fault) };
        self.hurt = true;
        let done = self.client.faults().inject(request).await?.into_inner().done;
        self.screen.say(&done);
        Ok(())
    }
}

/// Plays all acts.
pub(super) async fn play(stage: &mut Stage) -> Result<(), CliError> {
    let baseline = Config::default().baseline_checkpoints as u64;
    stage.screen.title("1. Learning what is normal, one checkpoint after the other, while the guest runs");
    stage.screen.say(&format!(
        "The first {baseline} teach the baseline. · is not judged yet: a checkpoint is good once those after it are clean."
    ));
    stage.screen.status("learning the baseline");
    stage.checkpoints(baseline + CALM_CHECKPOINTS).await?;

    stage.screen.title("2. A fault in guest memory: the system call `kill` is made to run another function");
    let redirect = SyscallRedirect { syscall: "kill".to_owned(), to: "getuid".to_owned() };
    hurt(stage, "syscall_redirected", "kill", Fault::SyscallRedirect(redirect)).await?;
    undo_once(stage).await?;
    stage.screen.title("3. Calm again");
    stage.screen.status("letting the guest run");
    stage.checkpoints(CALM_CHECKPOINTS).await?;

    stage.screen.title("4. A fault of behaviour: a program runs away inside the guest");
    let command = ConsoleCommand { line: "runaway &".to_owned() };
    hurt(stage, "runaway", "runaway", Fault::ConsoleCommand(command)).await?;
    stage.checkpoints(CALM_CHECKPOINTS / 2).await?;

    stage.summary.guest_complaints = stage.console.complaints();
    stage.summary.introspect_us = introspection_times(stage).await?;
    Ok(())
}

/// Injects a fault, waits for it to be noticed, goes back.
async fn hurt(stage: &mut Stage, kind: &str, expected: &str, fault: Fault) -> Result<(), CliError> {
    let injected_at = stage.newest.sequence;
    stage.inject(fault).await?;
    stage.screen.status("waiting for it to be noticed");
    let (incident, delay_checkpoints) = stage.notice().await?;
    let top = incident.causes.first().cloned().unwrap_or_default();
    stage.screen.say(&format!(
        "Noticed after {delay_checkpoints} checkpoint{}. First bad: {:.6}; last good: {:.6}.",
        if delay_checkpoints == 1 { "" } else { "s" },
        incident.first_bad,
        incident.last_good
    ));
    for cause in incident.causes.iter().take(3) {
        stage.screen.say(&format!("  {}. {}", cause.rank, style::printable(&cause.text)));
    }
    stage
        .screen
        .say(&format!("  (a ranking by chance is right in {:.1} % of cases)", incident.chance_level * 100.0));

    stage.incidents.push((incident.last_good.clone(), incident.first_bad.clone()));
    stage.screen.status("going back");
    let before = stage.console.last_tick(0).unwrap_or(0);
    let mark = stage.console.mark();
    let request = RollbackRequest {
        machine: MACHINE.to_owned(),
        checkpoint: incident.last_good.clone(),
        dry_run: false,
        verify_image: true,
        clock: 0,
        present: 0,
    };
    let moved = stage.client.checkpoints().rollback(request).await?.into_inner().r#move.unwrap_or_default();
    stage.hurt = false;
    arrived(stage, "Rolled back", &moved);
    let (after, line) = stage.first_tick(mark).await?;
    stage.screen.say(&format!(
        "The guest stood at tick {before}; now it goes on from its past, and knows nothing of it:"
    ));
    stage.screen.guest(&line);
    let first_bad = sequence_of(stage, &incident.first_bad).await?;
    stage.summary.rollbacks_us.push(moved.rollback_us);
    stage.summary.faults.push(FaultSummary {
        kind: kind.to_owned(),
        injected_at,
        first_bad,
        delay_checkpoints,
        rolled_back_to: moved.target.as_ref().map_or(0, |target| target.sequence),
        guest_counter_before: before,
        guest_counter_after: after,
        restored_image_matches: moved.image_matches == Some(true),
        top_cause: top.object,
        expected_cause: expected.to_owned(),
    });
    Ok(())
}

/// Shows that the other future is not lost: brings it back once, and returns.
async fn undo_once(stage: &mut Stage) -> Result<(), CliError> {
    stage.screen.say("Nothing is lost by going back: `undo` brings the other future back, fault and all.");
    stage.hurt = true;
    let request = UndoRequest { machine: MACHINE.to_owned(), verify_image: true };
    let moved = stage.client.checkpoints().undo(request).await?.into_inner().r#move.unwrap_or_default();
    stage.summary.undo_image_matches = moved.image_matches == Some(true);
    stage.summary.rollbacks_us.push(moved.rollback_us);
    arrived(stage, "Undone", &moved);
    stage.screen.status("waiting for the fault to be noticed again");
    loop {
        match stage.next().await? {
            Event::Checkpoint(taken) if taken.kind == "automatic" && taken.verdict() == Verdict::Bad => break,
            _ => {}
        }
    }
    let request = RedoRequest { machine: MACHINE.to_owned() };
    let moved = stage.client.checkpoints().redo(request).await?.into_inner().r#move.unwrap_or_default();
    stage.hurt = false;
    stage.summary.rollbacks_us.push(moved.rollback_us);
    arrived(stage, "And `redo` takes the undo back", &moved);
    Ok(())
}

fn arrived(stage: &mut Stage, how: &str, moved: &Move) {
    let target = moved.target.clone().unwrap_or_default();
    let image = match moved.image_matches {
        Some(true) => "; the restored memory has the checkpoint's hash",
        Some(false) => "; the restored memory does NOT have the checkpoint's hash",
        None => "",
    };
    stage.screen.say(&format!(
        "{how}: it stands on {:.6} #{} ({} pages written in {}{image}).",
        target.name,
        target.sequence,
        moved.pages_written,
        style::duration(moved.rollback_us),
    ));
}

async fn sequence_of(stage: &Stage, name: &str) -> Result<u64, CliError> {
    let numbers =
        ask(stage, &format!("SELECT sequence FROM v_checkpoint WHERE name = '{}'", name.replace('\'', "")))
            .await?;
    Ok(numbers.first().copied().unwrap_or(0))
}

async fn introspection_times(stage: &Stage) -> Result<Vec<u64>, CliError> {
    ask(stage, "SELECT introspect_us FROM fact_reading").await
}

/// The first column of an answer, as numbers.
async fn ask(stage: &Stage, sql: &str) -> Result<Vec<u64>, CliError> {
    let request = QueryRequest { sql: sql.to_owned(), parameters: Vec::new(), limit: 0 };
    let rows = stage.client.queries().query(request).await?.into_inner().table.unwrap_or_default().rows;
    Ok(rows
        .iter()
        .filter_map(|row| match row.cells.first()?.value {
            Some(cell::Value::Integer(number)) => u64::try_from(number).ok(),
            _ => None,
        })
        .collect())
}
