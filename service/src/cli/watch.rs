use clap::Args;
use retrovisor_proto::v1::WatchRequest;
use retrovisor_proto::v1::watch_response::Event;

use super::global::Global;
use super::{anomalies, checkpoint};
use crate::client;
use crate::error::CliError;
use crate::terminal::{output, quantity};

/// Follows the events of a machine or of all, until Ctrl-C or the end of the daemon.
#[derive(Debug, Args)]
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
            Some(Event::Error(what)) => outln!("{} error: {what}", event.machine),
            Some(Event::Missed(count)) => outln!("({count} events missed)"),
            None => {}
        }
    }
    Ok(())
}
