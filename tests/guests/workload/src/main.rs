//! The program that runs inside the test guest.
//!
//! It counts ticks, keeps a buffer and a file whose contents follow from the tick alone, and checks both
//! against what they must hold. So the console line of a given tick is the same in every run: a guest put
//! back to an earlier state either repeats its lines exactly, or says `CORRUPT`.
#![forbid(unsafe_code)]

mod arguments;
mod buffer;
mod clocks;
mod complaints;
mod generator;
mod identity;
mod journal;
mod lanes;
mod page;
mod runaway;
mod steady;

use std::process::ExitCode;

use arguments::Command;

fn main() -> ExitCode {
    let command = match arguments::parse(std::env::args().collect()) {
        Ok(command) => command,
        Err(reason) => {
            eprintln!("workload: {reason}\n\n{}", arguments::USAGE);
            return ExitCode::from(2);
        }
    };
    let result = match command {
        Command::Help => {
            println!("{}", arguments::USAGE);
            return ExitCode::SUCCESS;
        }
        Command::Steady(options) => steady::run(&options),
        Command::Runaway(options) => runaway::run(&options),
        Command::Burn(options) => {
            runaway::burn(&options);
            Ok(())
        }
        Command::Linger(options) => {
            runaway::linger(&options);
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workload: {error}");
            ExitCode::FAILURE
        }
    }
}
