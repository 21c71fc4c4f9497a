use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use retrovisor_proto::v1::ConsoleRequest;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::global::Global;
use crate::client;
use crate::error::CliError;
use crate::terminal::output;

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// Without a terminal, after the end of the input: the console is closed when the guest was silent for this long…
const SILENCE: Duration = Duration::from_secs(1);
/// … and also when the guest keeps writing for this long.
const OUTPUT_MAX: Duration = Duration::from_secs(5);

/// Connects to a machine's serial console. Leave it with Ctrl-].
#[derive(Debug, Args)]
#[command(after_help = "\
On a terminal every key is sent to the guest, except Ctrl-] which leaves. Earlier output is shown first (kvm).
From a pipe, the input is sent; then the output is shown until the guest is silent for a second, for five at most.
Examples:
  retrovisor console web
  echo 'uptime' | retrovisor console web")]
pub(crate) struct ConsoleArgs {
    /// The machine
    name: String,
}

pub(super) async fn run(args: ConsoleArgs, global: &Global) -> Result<(), CliError> {
    let client = client::daemon(&global.store()?).await?;
    let (keys, typed) = mpsc::channel(64);
    let first = ConsoleRequest { machine: args.name, input: Vec::new() };
    keys.send(first).await.map_err(|error| CliError::failed(error.to_string()))?;
    let mut output = client.machines().console(ReceiverStream::new(typed)).await?.into_inner();
    let terminal = RawTerminal::enter()?;
    if terminal.is_some() {
        output::raw_message("Leave the console with Ctrl-].\r\n");
    }
    let (end, mut ended) = mpsc::channel(1);
    let raw = terminal.is_some();
    // Reading a terminal cannot be cut short: the thread ends with the process.
    std::thread::spawn(move || {
        forward(&keys, raw);
        let _ = end.blocking_send(());
        // The input stream stays open while the guest's output is awaited.
        std::thread::park();
        drop(keys);
    });
    let mut until = None;
    loop {
        let wait = until.map_or(Duration::MAX, |until: Instant| {
            until.saturating_duration_since(Instant::now()).min(SILENCE)
        });
        tokio::select! {
            message = output.next() => match message {
                Some(message) => {
                    if !show(&message?.output)? {
                        break;
                    }
                }
                None => break,
            },
            Some(()) = ended.recv(), if until.is_none() => {
                if raw {
                    break;
                }
                until = Some(Instant::now() + OUTPUT_MAX);
            }
            () = tokio::time::sleep(wait), if until.is_some() => break,
        }
        if until.is_some_and(|until| Instant::now() > until) {
            break;
        }
    }
    if terminal.is_some() {
        output::raw_message("\r\n");
    }
    Ok(())
}

/// Sends the input, up to its end or the key that leaves.
fn forward(keys: &mpsc::Sender<ConsoleRequest>, raw: bool) {
    let mut bytes = [0; 1024];
    while let Ok(count @ 1..) = std::io::stdin().read(&mut bytes) {
        let typed = &bytes[..count];
        let leave = typed.iter().position(|byte| raw && *byte == LEAVE);
        let input = typed[..leave.unwrap_or(count)].to_vec();
        let sent = keys.blocking_send(ConsoleRequest { machine: String::new(), input });
        if leave.is_some() || sent.is_err() {
            return;
        }
    }
}

/// Whether somebody still reads the output. The terminal is restored before the program ends.
fn show(bytes: &[u8]) -> Result<bool, CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::failed(error.to_string())),
    }
}

/// A terminal that passes every key on. It is restored when this is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    /// Returns `None` where standard input is no terminal.
    fn enter() -> Result<Option<Self>, CliError> {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Ok(None);
        }
        let failed = |errno: nix::errno::Errno| CliError::failed(format!("the terminal: {errno}"));
        let before = tcgetattr(input.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(input.as_fd(), SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that went away needs nothing.
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}
