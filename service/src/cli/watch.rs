use clap::Args;
use retrovisor_proto::v1::watch_response::Event;
use retrovisor_proto::v1::{GuestEvent, GuestEventKind, WatchRequest};

use super::global::Global;
use super::{anomalies, checkpoint, list};
use crate::client;
use crate::error::CliError;
use crate::terminal::{output, paragraph, quantity};

/// Follows the events of a machine or of all, until Ctrl-C or the end of the daemon.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  retrovisor watch\n  retrovisor watch web --json")]
pub(crate) struct WatchArgs {
    /// The machine [default: all]
    name: Option<String>,
}

pub(super) async fn run(args: WatchArgs, global: &Global) -> Result<(), CliError> {
    let request = WatchRequest { machine: args.name.unwrap_or_default() };
    let mut events = client::daemon(&global.store()?).await?.watch().watch(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if global.json {
            let text = serde_json::to_string(&event).map_err(|error| CliError::failed(error.to_string()))?;
            output::json(&text);
            continue;
        }
        match event.event {
            Some(Event::Checkpoint(taken)) => outln!("{} {}", event.machine, checkpoint::line(&taken)),
            Some(Event::Incident(incident)) => anomalies::print_incident(&incident),
            Some(Event::Rollback(rollback)) => {
                let target = rollback.target.unwrap_or_default();
                outln!(
                    "{} is at {} #{} now, after {}",
                    event.machine,
                    target.name,
                    target.sequence,
                    quantity::duration(rollback.rollback_us)
                );
            }
            Some(Event::Injected(done)) => outln!("{} fault: {done}", event.machine),
            Some(Event::State(change)) => {
                let reason = paragraph::because(&change.reason);
                outln!("{} is {} now{reason}", event.machine, list::state(change.state()));
            }
            Some(Event::Guest(guest)) => outln!("{} {}", event.machine, guest_event(&guest)),
            Some(Event::Error(what)) => outln!("{} error: {what}", event.machine),
            Some(Event::Missed(count)) => outln!("({count} events missed)"),
            None => {}
        }
    }
    Ok(())
}

/// What happened to a guest, as the rest of a sentence that begins with its machine.
fn guest_event(event: &GuestEvent) -> String {
    let because = match &event.reason[..] {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    let by = if event.by_guest { "by the guest" } else { "from outside" };
    match event.kind() {
        GuestEventKind::PoweredOff => format!("was powered off {by}{because}"),
        GuestEventKind::Reset => format!("was reset {by}{because}"),
        GuestEventKind::Panicked => "reports a kernel panic".to_owned(),
        GuestEventKind::Stopped => "was stopped by another client of its QEMU".to_owned(),
        GuestEventKind::Resumed => "was resumed by another client of its QEMU".to_owned(),
        GuestEventKind::Watchdog => "had its watchdog expire".to_owned(),
        GuestEventKind::DiskError => format!("has an error of its disk {}{because}", event.disk),
        GuestEventKind::DiskErrorStopped => {
            format!("was stopped for an error of its disk {}{because}", event.disk)
        }
        GuestEventKind::MemoryFailure => "met an error of the host's memory".to_owned(),
        GuestEventKind::Unspecified => "had an event that this version does not know".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_events_are_sentences() {
        let event = GuestEvent {
            kind: GuestEventKind::PoweredOff.into(),
            by_guest: true,
            reason: "guest-shutdown".to_owned(),
            disk: String::new(),
        };
        assert_eq!(guest_event(&event), "was powered off by the guest (guest-shutdown)");
        let event = GuestEvent { kind: 1_000, ..GuestEvent::default() };
        assert_eq!(guest_event(&event), "had an event that this version does not know");
    }
}
