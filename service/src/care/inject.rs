//! Hurting a machine on purpose.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use retrovisor_guest::{Machine, PageSet};
use retrovisor_introspect::Kernel;
use retrovisor_snapshot::{CheckpointId, Store};

use super::CareError;

/// Longest command line that the guest's shell is given.
const LINE_BYTES_MAX: usize = 512;
/// A guest that does not read its serial port is not waited for longer.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(2);

/// What to break.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// System call `syscall` runs the kernel function of `to`.
    SyscallRedirect { syscall: String, to: String },
    /// A command for the guest's control shell.
    ConsoleCommand { line: String },
}

/// Redirects a system call: planned on the checkpoint while the guest runs, then patched in one pause.
/// Returns the frames written. The machine is paused afterwards.
pub(super) fn redirect(
    machine: &mut dyn Machine,
    store: &Arc<Store>,
    newest: CheckpointId,
    syscall: &str,
    to: &str,
) -> Result<PageSet, CareError> {
    let view = store.view(newest)?;
    let kernel = Kernel::find(&view, &store.registers(newest)?).map_err(retrovisor_faults::Error::from)?;
    let patches = retrovisor_faults::redirect_syscall(&kernel, &view, syscall, to)?;
    Ok(retrovisor_faults::apply(machine, &patches)?)
}

/// Types one line into the guest's control shell.
pub(super) fn type_line(control: &Path, line: &str) -> Result<(), CareError> {
    if line.is_empty() || line.len() > LINE_BYTES_MAX || line.chars().any(char::is_control) {
        return Err(CareError::Invalid(format!(
            "a command is one printable line of at most {LINE_BYTES_MAX} bytes"
        )));
    }
    let failed = |source| CareError::Io {
        doing: format!("cannot write to the guest's serial port {}", control.display()),
        source,
    };
    let mut port = UnixStream::connect(control).map_err(failed)?;
    port.set_write_timeout(Some(CONSOLE_PATIENCE)).map_err(failed)?;
    port.write_all(format!("{line}\n").as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_printable_line_is_typed() {
        let nowhere = Path::new("/nonexistent/port");
        for line in ["", "a\nb", "\x1b[A", &"x".repeat(513)] {
            assert!(matches!(type_line(nowhere, line), Err(CareError::Invalid(_))), "{line:?}");
        }
        assert!(matches!(type_line(nowhere, "date"), Err(CareError::Io { .. })));
    }
}
