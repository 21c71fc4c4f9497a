use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use retrovisor_manager::Manager;
use retrovisor_snapshot::{Access, RecorderSettings, Store};

use super::global::Global;
use crate::error::CliError;
use crate::{place, rpc};

/// Runs the daemon until SIGINT or SIGTERM. Machines keep running without it and are attached again at its next start.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  retrovisor serve\n  retrovisor --store /srv/retrovisor serve --listen 127.0.0.1:7070\n  retrovisor serve --staging-mib 1024 --page-cache-mib 1024   # guests that write a lot"
)]
pub(crate) struct ServeArgs {
    /// Listen on TCP, too; loopback only: every local user who reaches the port controls the machines
    #[arg(long, value_name = "ADDRESS", value_parser = parse_loopback)]
    listen: Option<SocketAddr>,
    /// Memory for pages that are copied and not on disk yet, for each machine. A checkpoint with more dirty pages waits
    /// for the disk while the guest is paused
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=MIB_MAX))]
    staging_mib: u64,
    /// Memory for pages of the newest checkpoints, for fast rollbacks; shared by all machines
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=MIB_MAX))]
    page_cache_mib: u64,
}

/// A checkpoint or rollback that is under way when the daemon ends has this long. What is cut off is continued or undone
/// at the next start, as after a crash.
const DETACH_MAX: Duration = Duration::from_secs(3);
/// More than any host has: 64 TiB.
const MIB_MAX: u64 = 64 << 20;

pub(super) async fn run(args: ServeArgs, global: &Global) -> Result<(), CliError> {
    let root = global.store()?;
    if let Some(changed) = place::prepare_store(&root)? {
        errln!("{changed}");
    }
    let store =
        Store::open(&root, Access::Create).map_err(|error| CliError::refused(error.to_string(), ""))?;
    match store.keep_reserve() {
        Ok(true) => {}
        Ok(false) => errln!("little space: none of it is reserved for `retrovisor prune` on a full disk"),
        Err(error) => errln!("no space is reserved for `retrovisor prune` on a full disk: {error}"),
    }
    store.set_page_cache_bytes_max(args.page_cache_mib << 20);
    let settings =
        RecorderSettings { staging_bytes_max: args.staging_mib << 20, ..RecorderSettings::default() };
    let drivers = retrovisor_machine::drivers(&place::hubs(&root));
    let manager = Arc::new(Manager::new(Arc::new(store), &root, settings, drivers));
    let socket = place::socket(&root);
    let listener = rpc::bind(&socket)?;
    let found = tokio::task::spawn_blocking({
        let manager = Arc::clone(&manager);
        move || manager.reattach_all()
    })
    .await
    .map_err(|error| CliError::failed(error.to_string()))?;
    for line in found {
        errln!("{line}");
    }
    errln!("retrovisor serves {} at {}", root.display(), socket.display());
    let ended = rpc::serve(Arc::clone(&manager), listener, args.listen).await;
    let detached = tokio::task::spawn_blocking(move || manager.detach_all());
    if tokio::time::timeout(DETACH_MAX, detached).await.is_err() {
        errln!("a machine is still busy; it is attached again at the next start");
    }
    // The lock of the store protects it; a socket that is left behind is replaced at the next start.
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
