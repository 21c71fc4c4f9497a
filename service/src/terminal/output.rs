//! The only way to standard output and standard error.
//!
//! Lines are cleaned ([`clean`]), so that no word of a guest drives the user's terminal, and styles are applied around
//! the clean text, where the terminal has them. A reader that closes its end of the pipe (`| head`) ends the program
//! quietly; messages on standard error are dropped when nobody reads them.

use std::io::{ErrorKind, Write};

use anstyle::Style;

use super::clean::{clean, clean_json};

/// As a shell shows a process that SIGPIPE has ended.
const EXIT_CODE_PIPE: i32 = 128 + 13;

/// Prints a line to standard output.
macro_rules! outln {
    () => { $crate::terminal::output::line("") };
    ($($argument:tt)*) => { $crate::terminal::output::line(&format!($($argument)*)) };
}

/// Prints a line to standard error.
macro_rules! errln {
    ($($argument:tt)*) => { $crate::terminal::output::message(&format!($($argument)*)) };
}

/// Bold text.
pub(crate) const BOLD: Style = Style::new().bold();

/// Prints a line.
pub(crate) fn line(text: &str) {
    styled_line(Style::new(), text);
}

/// Prints a line in a style.
pub(crate) fn styled_line(style: Style, text: &str) {
    let text = clean(text);
    write(|out| writeln!(out, "{style}{}{style:#}", text.trim_end()));
}

/// Prints the beginning of a line in a style, and its rest without one.
pub(crate) fn headed_line(style: Style, head: &str, rest: &str) {
    let (head, rest) = (clean(head), clean(rest));
    write(|out| writeln!(out, "{style}{head}{style:#}{}", rest.trim_end()));
}

/// Prints JSON.
pub(crate) fn json(text: &str) {
    let text = clean_json(text);
    write(|out| writeln!(out, "{text}"));
}

/// Prints bytes unchanged: the output of a console, or a completion script.
pub(crate) fn bytes(bytes: &[u8]) {
    handle(std::io::stdout().lock().write_all(bytes).and_then(|()| std::io::stdout().flush()));
}

/// Writes a status that the next line replaces. Only for terminals.
pub(crate) fn status(text: &str) {
    let text = clean(text);
    write(|out| write!(out, "… {text}"));
}

/// Removes the status.
pub(crate) fn clear_status() {
    write(|out| write!(out, "\r\x1b[K"));
}

/// Prints a line to standard error.
pub(crate) fn message(text: &str) {
    // A standard error that is closed must not end a daemon.
    let _ = writeln!(anstream::stderr().lock(), "{}", clean(text));
}

/// Prints a constant text to standard error unchanged: a terminal in raw mode needs `\r` at line ends.
pub(crate) fn raw_message(text: &'static str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Asks on standard error; the answer is awaited on the same line.
pub(crate) fn prompt(text: &str) {
    let mut err = anstream::stderr().lock();
    let _ = write!(err, "{} ", clean(text)).and_then(|()| err.flush());
}

fn write(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) {
    let mut out = anstream::stdout().lock();
    handle(write(&mut out).and_then(|()| out.flush()));
}

fn handle(written: std::io::Result<()>) {
    let Err(error) = written else { return };
    if error.kind() != ErrorKind::BrokenPipe {
        message(&format!("error: cannot write to standard output: {error}"));
        std::process::exit(1);
    }
    std::process::exit(EXIT_CODE_PIPE);
}
