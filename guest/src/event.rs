use serde::Serialize;

/// An event of a guest or its host, as reported by the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GuestEvent {
    /// The machine was switched off.
    Shutdown {
        /// Whether the guest initiated it.
        by_guest: bool,
        /// The driver's name of the cause; QEMU's are `guest-shutdown`, `guest-panic`, `host-signal`.
        reason: String,
    },
    /// The machine was reset and boots again.
    Reset {
        /// Whether the guest initiated it.
        by_guest: bool,
        /// The driver's name of the cause.
        reason: String,
    },
    /// The guest reported that its kernel crashed.
    Panicked,
    /// The vCPUs were stopped, neither by [`crate::Machine::pause`] nor by a cause with an event of its own: another
    /// client of the virtual machine monitor did it.
    Stopped,
    /// The vCPUs were started, not by [`crate::Machine::resume`].
    Resumed,
    /// A watchdog device expired.
    Watchdog,
    /// A disk of the machine failed on the host.
    DiskError {
        /// The disk's name in the driver.
        disk: String,
        /// The host's error.
        reason: String,
        /// Whether the vCPUs were stopped because of it.
        is_stopped: bool,
    },
    /// A memory error of the host affected the guest.
    MemoryFailure,
}
