//! The witness of the test guest: writes down what /proc says, to be compared with what was read from memory.
//!
//! `witness tell FILE OFFSET` writes every file that a comparison needs to a disk or file, from an offset on.
//! `witness scene FOLDER` opens sockets and files of every kind, and threads, and keeps them.
#![forbid(unsafe_code)]

mod scene;
mod statement;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *arguments.as_slice() {
        ["tell", file, offset] => offset.parse().map_err(std::io::Error::other).and_then(|offset| {
            let statement = statement::take();
            statement::write(file, offset, &statement)
        }),
        ["scene", folder, ..] => scene::play(folder),
        _ => Err(std::io::Error::other("usage: witness tell FILE OFFSET | witness scene FOLDER [WORD…]")),
    };
    if let Err(error) = result {
        eprintln!("witness: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
