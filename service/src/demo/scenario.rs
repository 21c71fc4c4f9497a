//! The steps of the demo: learn a baseline, inject a fault, detect it, roll back, undo and redo once.

use std::time::{Duration, Instant};

use retrovisor_analytics::Config;
use retrovisor_proto::v1::inject_request::Fault;
use retrovisor_proto::v1::watch_response::Event;
use retrovisor_proto::v1::{
    Checkpoint, ConsoleCommand, Incident, InjectRequest, MemoryFault, QueryRequest, RedoRequest, Rollback,
    RollbackRequest, UndoRequest, Verdict, WatchRequest, WatchResponse, cell,
};
use tonic::Streaming;

use super::MACHINE;
use super::console::Console;
use super::screen::Screen;
use super::summary::{FaultSummary, Summary};
use crate::client::Client;
use crate::error::CliError;
use crate::terminal::quantity;

/// Checkpoints after the baseline before the first fault, and between the faults.
const CALM_CHECKPOINTS: u64 = 8;
/// A fault that is not confirmed after this many checkpoints was missed.
const DETECTION_CHECKPOINTS_MAX: u64 = 16;
/// The stream of events is never silent for this long while the guest is checkpointed.
const EVENT_PATIENCE: Duration = Duration::from_secs(30);
/// A guest that was rolled back writes its next tick within this time.
const TICK_PATIENCE: Duration = Duration::from_secs(15);

/// What the steps share.
pub(super) struct Scenario {
    client: Client,
    events: Streaming<WatchResponse>,
    pub(super) console: Console,
    pub(super) screen: Screen,
    pub(super) summary: Summary,
    /// The newest checkpoint.
    newest: Checkpoint,
    /// Last good and first bad checkpoint of each incident.
    pub(super) incidents: Vec<(String, String)>,
    /// Whether a fault has effects now: alarms are right then.
    faulty: bool,
    /// The newest checkpoint of the fault's timeline: alarms up to it are right, also if their events come after the
    /// rollback.
    faulty_until: u64,
}

impl Scenario {
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
            faulty: false,
            faulty_until: 0,
        })
    }

    /// The next event; checkpoints are shown and counted on the way.
    async fn next(&mut self) -> Result<Event, CliError> {
        let quiet = || CliError::failed("no event for 30 s: the guest or its manager hangs");
        let event =
            tokio::time::timeout(EVENT_PATIENCE, self.events.message()).await.map_err(|_| quiet())??;
        match event.and_then(|event| event.event) {
            Some(Event::Checkpoint(taken)) => {
                if taken.kind != "before-rollback" {
                    self.summary.count(&taken, self.faulty || taken.sequence <= self.faulty_until);
                }
                self.screen.checkpoint(&taken);
                self.newest = taken.clone();
                Ok(Event::Checkpoint(taken))
            }
            Some(Event::Error(what)) => Err(CliError::failed(what)),
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
    async fn detect(&mut self) -> Result<(Incident, u64), CliError> {
        let mut delay = 0;
        loop {
            match self.next().await? {
                Event::Checkpoint(_) if delay >= DETECTION_CHECKPOINTS_MAX => {
                    return Err(CliError::failed(format!(
                        "the fault was not detected within {delay} checkpoints"
                    )));
                }
                Event::Checkpoint(_) => delay += 1,
                Event::Incident(incident) => return Ok((incident, delay)),
                _ => {}
            }
        }
    }

    /// The fault has no effects any more: the guest went to a checkpoint before it.
    fn left_fault(&mut self, rollback: &Rollback) {
        self.faulty = false;
        self.faulty_until = rollback.current.as_ref().map_or(0, |current| current.sequence);
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
        Err(CliError::failed("the guest writes no ticks any more"))
    }

    async fn inject(&mut self, fault: Fault) -> Result<(), CliError> {
        let request = InjectRequest { machine: MACHINE.to_owned(), fault: Some(fault) };
        self.faulty = true;
        let done = self.client.faults().inject(request).await?.into_inner().done;
        self.screen.text(&done);
        Ok(())
    }
}

/// Runs all steps.
pub(super) async fn run(scenario: &mut Scenario) -> Result<(), CliError> {
    let baseline = Config::default().baseline_checkpoints as u64;
    scenario.screen.title("1. Learning what is normal, checkpoint by checkpoint, while the guest runs");
    scenario.screen.text(&format!(
        "The baseline is learnt from the first {baseline}. A verdict is unknown until the checkpoints after it are clean."
    ));
    scenario.screen.status("learning the baseline");
    scenario.checkpoints(baseline + CALM_CHECKPOINTS).await?;

    scenario.screen.title("2. A fault in guest memory: the system call `kill` runs another kernel function");
    let redirect = MemoryFault {
        name: "syscall-redirect".to_owned(),
        arguments: [("syscall".to_owned(), "kill".to_owned()), ("to".to_owned(), "getuid".to_owned())].into(),
    };
    inject_and_roll_back(scenario, "syscall_redirected", "kill", Fault::MemoryFault(redirect)).await?;
    undo_once(scenario).await?;
    scenario.screen.title("3. Without a fault");
    scenario.screen.status("the guest runs");
    scenario.checkpoints(CALM_CHECKPOINTS).await?;

    scenario.screen.title("4. A fault of behaviour: a program in the guest uses all of a CPU");
    let command = ConsoleCommand { line: "runaway &".to_owned() };
    inject_and_roll_back(scenario, "runaway", "runaway", Fault::ConsoleCommand(command)).await?;
    scenario.checkpoints(CALM_CHECKPOINTS / 2).await?;

    scenario.summary.guest_complaints = scenario.console.complaints();
    scenario.summary.introspect_us = introspection_times(scenario).await?;
    Ok(())
}

/// Injects a fault, waits until it is detected, rolls back.
async fn inject_and_roll_back(
    scenario: &mut Scenario,
    kind: &str,
    expected: &str,
    fault: Fault,
) -> Result<(), CliError> {
    let injected_at = scenario.newest.sequence;
    scenario.inject(fault).await?;
    scenario.screen.status("waiting until it is detected");
    let (incident, delay_checkpoints) = scenario.detect().await?;
    let top = incident.causes.first().cloned().unwrap_or_default();
    scenario.screen.text(&format!(
        "Detected after {}. First bad: {:.6}; last good: {:.6}.",
        quantity::count(delay_checkpoints, "checkpoint"),
        incident.first_bad,
        incident.last_good
    ));
    for cause in incident.causes.iter().take(3) {
        scenario.screen.text(&format!("  {}. {}", cause.rank, cause.text));
    }
    scenario
        .screen
        .text(&format!("  (a random ranking is right in {:.1} % of cases)", incident.chance_level * 100.0));

    scenario.incidents.push((incident.last_good.clone(), incident.first_bad.clone()));
    scenario.screen.status("rolling back");
    let before = scenario.console.last_tick(0).unwrap_or(0);
    let mark = scenario.console.mark();
    let request = RollbackRequest {
        machine: MACHINE.to_owned(),
        checkpoint: incident.last_good.clone(),
        dry_run: false,
        verify_image: true,
        clock: 0,
        current: 0,
    };
    let moved =
        scenario.client.checkpoints().rollback(request).await?.into_inner().rollback.unwrap_or_default();
    scenario.left_fault(&moved);
    report(scenario, "Rolled back", &moved);
    let (after, line) = scenario.first_tick(mark).await?;
    scenario.screen.text(&format!(
        "The guest was at tick {before}; now it continues from an earlier one and finds its memory and disk consistent:"
    ));
    scenario.screen.guest(&line);
    let first_bad = sequence_of(scenario, &incident.first_bad).await?;
    scenario.summary.rollbacks_us.push(moved.rollback_us);
    scenario.summary.faults.push(FaultSummary {
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

/// Undoes the rollback, so that the fault is there again, and redoes it.
async fn undo_once(scenario: &mut Scenario) -> Result<(), CliError> {
    scenario
        .screen
        .text("A rollback loses nothing: `undo` goes back to the state before it, including the fault.");
    scenario.faulty = true;
    let request = UndoRequest { machine: MACHINE.to_owned(), verify_image: true };
    let moved = scenario.client.checkpoints().undo(request).await?.into_inner().rollback.unwrap_or_default();
    scenario.summary.undo_image_matches = moved.image_matches == Some(true);
    scenario.summary.rollbacks_us.push(moved.rollback_us);
    report(scenario, "Undone", &moved);
    scenario.screen.status("waiting until the fault is detected again");
    loop {
        match scenario.next().await? {
            Event::Checkpoint(taken) if taken.kind == "automatic" && taken.verdict() == Verdict::Bad => break,
            _ => {}
        }
    }
    let request = RedoRequest { machine: MACHINE.to_owned(), verify_image: true };
    let moved = scenario.client.checkpoints().redo(request).await?.into_inner().rollback.unwrap_or_default();
    scenario.left_fault(&moved);
    scenario.summary.rollbacks_us.push(moved.rollback_us);
    report(scenario, "`redo` undoes the undo", &moved);
    Ok(())
}

fn report(scenario: &mut Scenario, how: &str, moved: &Rollback) {
    let target = moved.target.clone().unwrap_or_default();
    let image = match moved.image_matches {
        Some(true) => "; the restored memory has the checkpoint's hash",
        Some(false) => "; the restored memory does NOT have the checkpoint's hash",
        None => "",
    };
    scenario.screen.text(&format!(
        "{how}: the guest is at {:.6} #{} ({} pages written in {}{image}).",
        target.name,
        target.sequence,
        moved.pages_written,
        quantity::duration(moved.rollback_us),
    ));
}

async fn sequence_of(scenario: &Scenario, name: &str) -> Result<u64, CliError> {
    let numbers = ask(
        scenario,
        &format!("SELECT sequence FROM v_checkpoint WHERE name = '{}'", name.replace('\'', "")),
    )
    .await?;
    Ok(numbers.first().copied().unwrap_or(0))
}

async fn introspection_times(scenario: &Scenario) -> Result<Vec<u64>, CliError> {
    ask(scenario, "SELECT introspect_us FROM fact_reading").await
}

/// The first column of an answer, as numbers.
async fn ask(scenario: &Scenario, sql: &str) -> Result<Vec<u64>, CliError> {
    let request = QueryRequest { sql: sql.to_owned(), parameters: Vec::new(), limit: 0 };
    let rows = scenario.client.queries().query(request).await?.into_inner().table.unwrap_or_default().rows;
    Ok(rows
        .iter()
        .filter_map(|row| match row.cells.first()?.value {
            Some(cell::Value::Integer(number)) => u64::try_from(number).ok(),
            _ => None,
        })
        .collect())
}
