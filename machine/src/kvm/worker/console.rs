use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use retrovisor_guest::MachineError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Uid;

use super::console_log::ConsoleLog;
use super::peer::may;
use crate::kvm::console::ConsoleInput;
use crate::kvm::console::output::ConsoleOutput;

/// Bound on the clients of one console.
const OPEN_MAX: usize = 4;
/// How often a silent console checks whether its client is still connected.
const LOOK: Duration = Duration::from_millis(500);
/// Interval between attempts to pass input to a guest that does not read it.
const FULL: Duration = Duration::from_millis(10);

/// The host's side of one of the machine's consoles.
#[derive(Clone)]
pub(super) struct Ends {
    pub(super) output: ConsoleOutput,
    pub(super) input: ConsoleInput,
    /// Whether a new client gets the earlier output first. Otherwise the console is a channel for requests: when a
    /// connection ends, its input that the guest has not read is dropped.
    pub(super) from_the_first: bool,
}

/// Writes the guest's output to the log, on a thread of its own, which ends with the process.
pub(super) fn keep(log: ConsoleLog, output: ConsoleOutput) -> Result<(), MachineError> {
    start("console-log", move || write(log, &output))
}

/// Serves clients, on threads of their own.
pub(super) fn serve(
    name: &'static str,
    listener: UnixListener,
    owner: Uid,
    ends: Ends,
) -> Result<(), MachineError> {
    start(name, move || {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming().map_while(Result::ok) {
            if !may(&stream, owner) || open.load(Ordering::SeqCst) >= OPEN_MAX {
                continue;
            }
            if let Err(error) = connect(stream, &ends, &open) {
                tracing::warn!(%error, name, "a console does not open");
            }
        }
    })
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), MachineError> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(work);
    started
        .map(drop)
        .map_err(|source| MachineError::Io { doing: format!("starting the thread {name}"), source })
}

fn write(mut log: ConsoleLog, output: &ConsoleOutput) {
    let mut offset = 0;
    loop {
        if !output.wait(offset, LOOK) {
            continue;
        }
        let (bytes, next) = output.since(offset);
        if let Err(error) = log.append(&bytes) {
            tracing::warn!(%error, "the console is not logged any more");
            return;
        }
        offset = next;
    }
}

fn connect(stream: UnixStream, ends: &Ends, open: &Arc<AtomicUsize>) -> Result<(), MachineError> {
    let reader = stream
        .try_clone()
        .map_err(|source| MachineError::Io { doing: "opening a console".into(), source })?;
    let Ends { output, input, from_the_first } = ends.clone();
    // Before any input, so that its output is shown.
    let offset = if from_the_first { 0 } else { output.end() };
    start("console-input", move || {
        // The end of the connection ends the input.
        let _ = type_in(reader, &input);
        if !from_the_first {
            input.clear();
        }
    })?;
    let open = Arc::clone(open);
    open.fetch_add(1, Ordering::SeqCst);
    start("console-output", move || {
        // The end of a connection is no error.
        let _ = show(stream, &output, offset);
        open.fetch_sub(1, Ordering::SeqCst);
    })
}

fn type_in(mut from: UnixStream, input: &ConsoleInput) -> io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let count = from.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let taken = input.type_in(rest);
            rest = rest.get(taken..).unwrap_or_default();
            if taken == 0 {
                if gone(&from) {
                    return Ok(());
                }
                thread::sleep(FULL);
            }
        }
    }
}

/// All kept output from `offset` on, then new output.
fn show(mut to: UnixStream, output: &ConsoleOutput, mut offset: u64) -> io::Result<()> {
    loop {
        if output.wait(offset, LOOK) {
            let (bytes, next) = output.since(offset);
            to.write_all(&bytes)?;
            offset = next;
        } else if gone(&to) {
            return Ok(());
        }
    }
}

/// Whether the other end is closed.
fn gone(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
