use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::CliError;
use crate::{place, terminal::output};

/// Options of every verb.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// The store: checkpoints, catalogue, and the daemon's socket [default: ~/.local/share/retrovisor]
    #[arg(long, global = true, env = "RETROVISOR_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Global {
    /// The store that was named, or the user's own.
    pub(crate) fn store(&self) -> Result<PathBuf, CliError> {
        self.store.as_deref().map(Path::to_owned).map_or_else(place::default_store, Ok)
    }
}

/// Prints a message as JSON.
pub(super) fn print_json<T: serde::Serialize>(message: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(message).map_err(|error| CliError::failed(error.to_string()))?;
    output::json(&text);
    Ok(())
}
