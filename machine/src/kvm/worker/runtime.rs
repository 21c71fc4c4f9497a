use std::path::{Path, PathBuf};

use retrovisor_guest::MachineError;

use crate::socket_path;

/// The directory in which a machine has its sockets and logs.
#[derive(Clone, Debug)]
pub(super) struct RuntimeDir(PathBuf);

impl RuntimeDir {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_path_buf())
    }

    /// The socket of the worker.
    pub(super) fn control(&self) -> PathBuf {
        self.0.join("worker")
    }

    /// The socket of the serial port: a client's bytes are input, the guest's output comes back, beginning with earlier
    /// output.
    pub(super) fn console(&self) -> PathBuf {
        self.0.join("console")
    }

    /// The socket of the control channel, likewise, but without earlier output.
    pub(super) fn channel(&self) -> PathBuf {
        self.0.join("channel")
    }

    /// The file with the guest's output.
    pub(super) fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// The older output, before that file was restarted.
    pub(super) fn older_console_log(&self) -> PathBuf {
        self.0.join("console.log.1")
    }

    /// The worker's own messages.
    pub(super) fn log(&self) -> PathBuf {
        self.0.join("worker.log")
    }

    /// Creates it, accessible to its owner only, and refuses a path that is too long for sockets.
    pub(super) fn prepare(&self) -> Result<(), MachineError> {
        socket_path::check(&self.console())?;
        std::fs::create_dir_all(&self.0)
            .map_err(|source| MachineError::Io { doing: format!("making {}", self.0.display()), source })
    }

    /// Removes files that are only useful with a worker. Logs stay.
    pub(super) fn remove_sockets(&self) {
        for path in [self.control(), self.console(), self.channel()] {
            let _ = std::fs::remove_file(path);
        }
    }
}
