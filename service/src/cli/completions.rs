use clap::Args;
use clap_complete::env::Shells;

use crate::completion;
use crate::error::CliError;
use crate::terminal::output;

/// Prints a script that makes a shell complete commands, names of machines, and what the daemon lists.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  retrovisor completions bash > /etc/bash_completion.d/retrovisor\n  source <(retrovisor completions zsh)"
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_parser = ["bash", "elvish", "fish", "powershell", "zsh"])]
    shell: String,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<(), CliError> {
    let failed = |why: &dyn std::fmt::Display| CliError::failed(format!("no completion script: {why}"));
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell).ok_or_else(|| failed(&"the shell is not known"))?;
    let mut script = Vec::new();
    shell
        .write_registration(completion::VARIABLE, "retrovisor", "retrovisor", "retrovisor", &mut script)
        .map_err(|error| failed(&error))?;
    output::bytes(&script);
    Ok(())
}
