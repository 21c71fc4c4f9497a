use serde::Serialize;

/// Something that happened to a guest by itself or by the host, as its driver saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GuestEvent {
    /// The machine was switched off.
    Shutdown {
        /// Whether the guest did it.
        by_guest: bool,
        /// The driver's word for the cause; QEMU's are `guest-shutdown`, `guest-panic`, `host-signal`.
        reason: String,
    },
    /// The machine was reset and boots anew.
    Reset {
        /// Whether the guest did it.
        by_guest: bool,
        /// The driver's word for the cause.
        reason: String,
    },
    /// The guest reported that its kernel crashed.
    Panicked,
    /// The vCPUs were stopped, and neither by [`crate::Machine::pause`] nor by a cause with an event of its own: another
    /// client of the virtual machine monitor did it.
    Stopped,
    /// The vCPUs were set running, and not by [`crate::Machine::resume`].
    Resumed,
    /// A watchdog device expired.
    Watchdog,
    /// A disk of the machine failed on the host.
    DiskError {
        /// The disk's name in the driver.
        disk: String,
        /// The host's error.
        reason: String,
        /// Whether the vCPUs were stopped for it.
        is_stopped: bool,
    },
    /// The host's memory failed under the guest.
    MemoryFailure,
}
