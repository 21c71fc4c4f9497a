use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Runs a command in the control shell of a guest and returns what it printed.
#[must_use]
pub(crate) fn run(port: &Path, command: &str) -> String {
    let port = send(port, &format!("{command}; echo E''ND"));
    port.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut lines = Vec::new();
    for line in BufReader::new(port).lines() {
        let line = line.expect("the guest's answer");
        if line.trim_end() == "END" {
            break;
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// Sends a command to the control shell. What the guest has not read when the connection is dropped is lost.
#[must_use]
pub(crate) fn send(port: &Path, command: &str) -> UnixStream {
    let mut port = UnixStream::connect(port).expect("the control port");
    port.write_all(format!("{command}\n").as_bytes()).expect("the command is written");
    port
}
