use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use retrovisor_snapshot::{Access, Store};

use super::global::Global;
use crate::care::Care;
use crate::error::CliError;
use crate::{place, rpc};

/// Runs the daemon until it is told to end. Guests that it started go on without it and are found again.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  retrovisor serve\n  retrovisor --store /srv/retrovisor serve --listen 127.0.0.1:7070"
)]
pub(crate) struct ServeArgs {
    /// Listens on TCP, too; loopback only: whoever reaches the port controls the guests
    #[arg(long, value_name = "ADDRESS", value_parser = parse_loopback)]
    listen: Option<SocketAddr>,
}

pub(super) async fn run(args: ServeArgs, global: &Global) -> Result<(), CliError> {
    let store = Store::open(&global.store, Access::Create)
        .map_err(|error| CliError::refused(error.to_string(), ""))?;
    let care = Arc::new(Care::new(Arc::new(store), &global.store));
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
