//! Fault injection.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use retrovisor_faults::{Arguments, Plan, Target};
use retrovisor_snapshot::{CheckpointId, MachineId, OperationKind, Store};

use crate::{error::ManagerError, kernels::kernel_library};

/// Longest command line that the guest's shell is given.
const LINE_BYTES_MAX: usize = 512;
/// How long typing a command and its answer may take together.
const SHELL_WAIT: Duration = Duration::from_secs(5);
/// Output of a command that is read while waiting for its end.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What the shell says once it has taken the command, in two halves.
const TAKEN_HEAD: &str = "retrovisor-";
const TAKEN_TAIL: &str = "typed";
/// Commands typed so far.
static TYPED: AtomicU64 = AtomicU64::new(0);

/// What to break.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Changes guest memory: one of [`retrovisor_faults::all`].
    Memory {
        /// The fault's name.
        name: String,
        /// Values of its parameters, by name.
        arguments: HashMap<String, String>,
    },
    /// A command for the guest's control shell.
    ConsoleCommand {
        /// One printable line.
        line: String,
    },
}

/// Plans a fault in guest memory on a checkpoint, while the guest runs.
pub(crate) fn plan(
    store: &Arc<Store>,
    newest: CheckpointId,
    name: &str,
    arguments: HashMap<String, String>,
) -> Result<Plan, ManagerError> {
    let fault = retrovisor_faults::find(name)?;
    let arguments = Arguments::new(fault, arguments)?;
    let (view, registers) = (store.view(newest)?, store.registers(newest)?);
    let target = Target { view: &view, registers: &registers, library: Some(kernel_library(store)) };
    Ok(fault.plan(&target, &arguments)?)
}

/// Writes to the catalogue that a fault was injected. Returns the operation's name.
pub(crate) fn record(store: &Store, machine: MachineId, done: &str) -> Result<String, ManagerError> {
    let detail = serde_json::json!({ "done": done });
    Ok(store.catalogue().note_operation(machine, OperationKind::Inject, &detail)?.name)
}

/// Types one line into the guest's control shell, which is at its terminal `port`, and waits until the shell has taken it:
/// what the guest has not read when the connection ends is dropped.
pub(crate) fn type_line(control: &Path, port: &str, line: &str) -> Result<(), ManagerError> {
    if line.is_empty() || line.len() > LINE_BYTES_MAX || line.chars().any(char::is_control) {
        return Err(ManagerError::Invalid(format!(
            "a command is one printable line of at most {LINE_BYTES_MAX} bytes"
        )));
    }
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ManagerError::Refused {
            what: format!("no shell of the guest took the command within {} s", SHELL_WAIT.as_secs()),
            help: format!("Have the guest serve a shell on {port}, which reads a command from each line."),
        },
        _ => ManagerError::Io {
            doing: format!("the guest's shell at {} does not take the command", control.display()),
            source,
        },
    };
    // One deadline for all of it: a guest that sends a byte now and then does not extend it.
    let deadline = Instant::now() + SHELL_WAIT;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let mut stream = UnixStream::connect(control).map_err(failed)?;
    // Its own number, so that a late answer to an earlier command is not taken for this one's; and split in the command, so
    // that an echo of the command is not either.
    let number = TYPED.fetch_add(1, Ordering::Relaxed);
    let typed = format!("{line}\necho {TAKEN_HEAD}''{TAKEN_TAIL}-{number}.\n");
    let mut rest = typed.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left().map_err(failed)?)).map_err(failed)?;
        let count = stream.write(rest).map_err(failed)?;
        rest = &rest[count..];
    }
    let taken = format!("{TAKEN_HEAD}{TAKEN_TAIL}-{number}.");
    let mut said = Vec::new();
    let mut bytes = [0; 512];
    while !said.windows(taken.len()).any(|window| window == taken.as_bytes()) {
        stream.set_read_timeout(Some(left().map_err(failed)?)).map_err(failed)?;
        let count = stream.read(&mut bytes).map_err(failed)?;
        if count == 0 || said.len() > ANSWER_BYTES_MAX {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        said.extend_from_slice(&bytes[..count]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_one_printable_line_is_typed() {
        let nowhere = Path::new("/nonexistent/port");
        for line in ["", "a\nb", "\x1b[A", &"x".repeat(513)] {
            assert!(matches!(type_line(nowhere, "ttyS1", line), Err(ManagerError::Invalid(_))), "{line:?}");
        }
        assert!(matches!(type_line(nowhere, "ttyS1", "date"), Err(ManagerError::Io { .. })));
    }

    #[test]
    fn a_late_answer_to_another_command_is_not_taken_for_this_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let shell = std::thread::spawn(move || {
            let (mut port, _) = listener.accept().unwrap();
            let mut typed = String::new();
            while typed.lines().count() < 2 {
                let mut bytes = [0; 256];
                let count = port.read(&mut bytes).unwrap();
                typed.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            }
            port.write_all(b"retrovisor-typed-99.\n").unwrap();
            // The other end is still there, and waits for its own.
            port.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            assert_eq!(port.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let answer = typed.lines().nth(1).unwrap().strip_prefix("echo ").unwrap().replace("''", "");
            port.write_all(format!("{answer}\n").as_bytes()).unwrap();
            typed
        });
        type_line(&path, "hvc0", "date").unwrap();
        assert!(shell.join().unwrap().starts_with("date\n"));
    }

    #[test]
    fn a_guest_that_drips_bytes_does_not_extend_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut port, _) = listener.accept().unwrap();
            while port.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let began = Instant::now();
        assert!(matches!(type_line(&path, "ttyS1", "date"), Err(ManagerError::Refused { .. })));
        assert!(began.elapsed() < SHELL_WAIT + Duration::from_secs(3), "{:?}", began.elapsed());
    }

    #[test]
    fn a_guest_without_a_shell_is_refused_with_the_port_it_needs_one_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let _silent = UnixListener::bind(&path).unwrap();
        match type_line(&path, "hvc0", "date") {
            Err(ManagerError::Refused { help, .. }) => assert!(help.contains("hvc0"), "{help}"),
            other => panic!("{other:?}"),
        }
    }
}
