use clap::Args;
use retrovisor_proto::v1::WatchRequest;
use retrovisor_proto::v1::watch_response::Event;

use super::global::Global;
use super::{anomalies, checkpoint};
use crate::client;
use crate::error::CliError;
use crate::terminal::style;

/// Follows what happens, as it happens. Ends with Ctrl-C.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The machine; all when left out
    name: Option<String>,
}

pub(super) async fn run(args: WatchArgs, global: &Global) -> Result<(), CliError> {
    let request = WatchRequest { machine: args.name.unwrap_or_default() };
    let mut events = client::daemon(&global.store).await?.watch().watch(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if global.json {
            println!(
                "{}",
                serde_json::to_string(&event).map_err(|error| CliError::failed(error.to_string()))?
            );
            continue;
        }
        match event.event {
            Some(Event::Checkpoint(taken)) => println!("{} {}", event.machine, checkpoint::line(&taken)),
            Some(Event::Incident(incident)) => anomalies::print_incident(&incident),
            Some(Event::Move(journey)) => {
                let target = journey.target.unwrap_or_default();
                println!(
                    "{} went to {} #{} in {}",
                    event.machine,
                    target.name,
                    target.sequence,
                    style::duration(journey.rollback_us)
                );
            }
            Some(Event::Injected(done)) => println!("{} injected: {done}", event.machine),
            Some(Event::Trouble(what)) => println!("{} trouble: {what}", event.machine),
            Some(Event::Missed(count)) => println!("({count} events missed)"),
            None => {}
        }
    }
    Ok(())
}
