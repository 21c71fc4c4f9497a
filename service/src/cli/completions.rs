use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::terminal::output;

/// Prints a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  retrovisor completions bash > /etc/bash_completion.d/retrovisor")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "retrovisor", &mut script);
    output::bytes(&script);
}
