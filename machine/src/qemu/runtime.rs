use std::path::{Path, PathBuf};

use retrovisor_guest::MachineError;

use crate::socket_path;

/// The directory in which one machine has its sockets, logs and disk overlays.
#[derive(Clone, Debug)]
pub(super) struct RuntimeDir(PathBuf);

impl RuntimeDir {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_path_buf())
    }

    /// QEMU's monitor.
    pub(super) fn monitor(&self) -> PathBuf {
        self.0.join("qmp")
    }

    /// The guest's first serial port.
    pub(super) fn console(&self) -> PathBuf {
        self.0.join("console")
    }

    /// The file with all output of the guest there.
    pub(super) fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// The guest's second serial port.
    pub(super) fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// QEMU's own messages.
    pub(super) fn log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    /// The overlays.
    pub(super) fn disks(&self) -> PathBuf {
        self.0.join("disks")
    }

    /// Removes files that are only useful with a running QEMU. Logs and overlays stay.
    pub(super) fn remove_sockets(&self) {
        for path in [self.monitor(), self.console(), self.control()] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Refuses a directory whose sockets would have names that are too long.
    pub(super) fn check_room(&self) -> Result<(), MachineError> {
        socket_path::check(&self.console())
    }
}
