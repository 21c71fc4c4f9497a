//! Questions before something is removed.

use std::io::{BufRead as _, IsTerminal as _};

use crate::error::CliError;
use crate::terminal::output;

/// Refuses to go on without confirmation where standard input is no terminal.
pub(super) fn refuse_unattended(what: &str) -> Result<(), CliError> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    Err(CliError::refused(
        format!("{what}, and standard input is no terminal to ask on"),
        "See the plan with --dry-run, then confirm with --yes",
    ))
}

/// Asks a question; all answers but `y` are an error.
pub(super) fn confirm(question: &str, to_what: &str) -> Result<(), CliError> {
    output::prompt(&format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| CliError::failed(error.to_string()))?;
    if answer.trim().eq_ignore_ascii_case("y") {
        return Ok(());
    }
    Err(CliError::refused("nothing was removed", format!("Answer y, or use --yes, {to_what}")))
}
