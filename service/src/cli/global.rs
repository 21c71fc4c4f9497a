use std::path::PathBuf;

use clap::Args;

use crate::error::CliError;
use crate::place;

/// Options of every verb.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// The store: checkpoints, catalogue, and the daemon's socket
    #[arg(long, global = true, env = "RETROVISOR_STORE", value_name = "DIR", default_value_os_t = place::default_store())]
    pub(crate) store: PathBuf,
    /// Print JSON instead of words
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Prints a message as JSON.
pub(super) fn print_json<T: serde::Serialize>(message: &T) -> Result<(), CliError> {
    println!(
        "{}",
        serde_json::to_string_pretty(message).map_err(|error| CliError::failed(error.to_string()))?
    );
    Ok(())
}
