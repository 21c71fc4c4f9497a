//! The command `retrovisor`: daemon, command line and demonstration.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod terminal;

mod cli;
mod client;
mod completion;
mod demo;
mod error;
mod place;
mod rpc;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    retrovisor_machine::limit_heaps();
    if std::env::args_os().nth(1).is_some_and(|verb| verb == retrovisor_machine::kvm::WORKER_VERB) {
        // A worker must begin with one thread: before there is a runtime.
        log();
        return retrovisor_machine::kvm::worker_process();
    }
    completion::answer_if_requested(cli::Cli::command);
    let cli = cli::Cli::parse();
    log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            errln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let is_json = cli.global.json;
    let outcome = runtime.block_on(cli::run(cli));
    // Blocking work whose client has gone must not delay the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_json => {
            errln!("{}", error.json());
            ExitCode::from(error.exit_code)
        }
        Err(error) => {
            errln!("error: {error}");
            error.help.lines().for_each(terminal::output::message);
            ExitCode::from(error.exit_code)
        }
    }
}

/// Log messages go to standard error, filtered by `RETROVISOR_LOG`.
fn log() {
    let filter = EnvFilter::try_from_env("RETROVISOR_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
