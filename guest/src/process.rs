use std::fmt;

use serde::{Deserialize, Serialize};

/// The process of a machine. Two processes with the same number differ in their start time, or in the boot of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since the host booted (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// The boot of the host (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl fmt::Display for ProcessIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}@{}", self.pid, self.start_ticks, self.boot_id)
    }
}
