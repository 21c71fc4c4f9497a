use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use retrovisor_snapshot::{Access, RecorderSettings, Store};

use super::global::Global;
use crate::care::Care;
use crate::error::CliError;
use crate::{place, rpc};

/// Runs the daemon until it is told to end. Guests that it started go on without it and are found again.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  retrovisor serve\n  retrovisor --store /srv/retrovisor serve --listen 127.0.0.1:7070\n  retrovisor serve --staging-mib 1024 --ring-mib 1024   # guests that write much"
)]
pub(crate) struct ServeArgs {
    /// Listens on TCP, too; loopback only: whoever reaches the port controls the guests
    #[arg(long, value_name = "ADDRESS", value_parser = parse_loopback)]
    listen: Option<SocketAddr>,
    /// Memory for copied pages on their way to the disk, for each machine. A checkpoint of more dirty pages waits for the disk
    /// while the guest stands still
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=MIB_MAX))]
    staging_mib: u64,
    /// Memory for pages of the newest checkpoints, from which rollbacks are quick; all machines share it
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=MIB_MAX))]
    ring_mib: u64,
}

/// More than any host has: 64 TiB.
const MIB_MAX: u64 = 64 << 20;

pub(super) async fn run(args: ServeArgs, global: &Global) -> Result<(), CliError> {
    let store = Store::open(&global.store, Access::Create)
        .map_err(|error| CliError::refused(error.to_string(), ""))?;
    store.set_page_cache_bytes_max(args.ring_mib << 20);
    let settings =
        RecorderSettings { staging_bytes_max: args.staging_mib << 20, ..RecorderSettings::default() };
    let care = Arc::new(Care::new(Arc::new(store), &global.store, settings));
    let socket = place::socket(&global.store);
    let listener = rpc::bind(&socket)?;
    let found = tokio::task::spawn_blocking({
        let care = Arc::clone(&care);
        move || care.find_again()
    })
    .await
    .map_err(|error| CliError::failed(error.to_string()))?;
    for line in found {
        eprintln!("{line}");
    }
    eprintln!("retrovisor serves {} at {}", global.store.display(), socket.display());
    let ended = rpc::serve(Arc::clone(&care), listener, args.listen).await;
    care.let_go();
    // The lock of the store says who serves; a socket left behind is replaced at the next start.
    let _ = std::fs::remove_file(&socket);
    Ok(ended?)
}

fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| format!("`{text}` is not an address: write 127.0.0.1:7070"))?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!(
            "{} is not a loopback address; others would need TLS, which is not there yet",
            address.ip()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on() {
        assert!(parse_loopback("127.0.0.1:7070").is_ok());
        assert!(parse_loopback("[::1]:7070").is_ok());
        assert!(parse_loopback("0.0.0.0:7070").is_err());
        assert!(parse_loopback("7070").is_err());
    }
}
