use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use nix::unistd::ForkResult;
use retrovisor_guest::MachineError;

use super::confine::{self, Confinement};
use super::serve;

/// Bound on pending connections.
const BACKLOG: i32 = 8;

/// The main function of a worker process. Its standard input is the bound socket of its control, its standard output
/// that of its console, its standard error the log. Must be the first call of a process, while that has one thread.
///
/// The started process ends at once; its child is the worker, which is then not a child of the starting process.
#[must_use]
pub fn run() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), MachineError> {
    let failed = |doing: &str| {
        let doing = format!("starting a worker: {doing}");
        move |source: io::Error| MachineError::Io { doing, source }
    };
    let (input, output) = (io::stdin(), io::stdout());
    let control = socket(input.as_fd().try_clone_to_owned().map_err(failed("its input"))?)?;
    let console = socket(output.as_fd().try_clone_to_owned().map_err(failed("its output"))?)?;
    let threads = std::fs::read_dir("/proc/self/task").map_err(failed("counting its threads"))?.count();
    if threads != 1 {
        return Err(MachineError::Driver {
            doing: "starting a worker".into(),
            message: format!("the process has {threads} threads already"),
        });
    }
    let owner = rustix::process::geteuid();
    let mut confinement = Confinement::default();
    confine::early(&mut confinement);
    // SAFETY: this process has one thread, so that no lock is held by another one that the child does not have.
    match unsafe { nix::unistd::fork() }.map_err(|errno| failed("forking")(errno.into()))? {
        ForkResult::Parent { .. } => return Ok(()),
        ForkResult::Child => {}
    }
    rustix::process::setsid().map_err(|errno| failed("leaving the session")(errno.into()))?;
    // From here on the kernel reports this process to a client that connects.
    for socket in [&control, &console] {
        rustix::net::listen(socket, BACKLOG).map_err(|errno| failed("listening")(errno.into()))?;
    }
    serve::serve(&control, console, owner, confinement)
}

/// Makes a listener of a descriptor.
fn socket(descriptor: OwnedFd) -> Result<UnixListener, MachineError> {
    let listener = UnixListener::from(descriptor);
    match listener.local_addr() {
        Ok(_) => Ok(listener),
        Err(_) => Err(MachineError::Config {
            what: "a worker's input and output are sockets, which are not here".into(),
            help: "The daemon starts workers by itself: use `retrovisor run`".into(),
        }),
    }
}
