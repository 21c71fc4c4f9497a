//! The command `retrovisor`: daemon, command line, and the demo that tells the whole story.
#![forbid(unsafe_code)]

mod cli;
mod client;
mod demo;
mod error;
mod place;
mod rpc;
mod terminal;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|verb| verb == retrovisor_machine::kvm::WORKER_VERB) {
        // A worker must begin with one thread: before there is a runtime.
        log();
        return retrovisor_machine::kvm::worker_process();
    }
    let cli = cli::Cli::parse();
    terminal::reader::end_when_nobody_reads();
    log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if !error.help.is_empty() {
                eprintln!("{}", error.help);
            }
            ExitCode::from(error.exit_code)
        }
    }
}

/// Messages go to standard error, as many as `RETROVISOR_LOG` asks for.
fn log() {
    let filter = EnvFilter::try_from_env("RETROVISOR_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
