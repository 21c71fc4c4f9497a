use serde_json::Value;

use super::message::Event;

/// Something that happened to the guest, as QEMU told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The machine was switched off.
    Shutdown {
        /// Whether the guest did it.
        by_guest: bool,
        /// QEMU's word for the cause: `guest-shutdown`, `guest-panic`, `host-signal`.
        reason: String,
    },
    /// The machine was reset and boots anew.
    Reset {
        /// Whether the guest did it.
        by_guest: bool,
        /// QEMU's word for the cause.
        reason: String,
    },
    /// The guest's kernel said that it crashed.
    Panicked,
    /// A watchdog bit.
    Watchdog,
    /// A disk of the machine failed on the host.
    DiskError {
        /// The disk's node.
        disk: String,
        /// What the host said.
        reason: String,
    },
    /// The host's memory failed under the guest.
    MemoryFailure,
}

impl GuestEvent {
    pub(super) fn of(event: &Event) -> Option<Self> {
        let flag = |name| event.data.get(name) == Some(&Value::Bool(true));
        let word = |name| event.data.get(name).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        Some(match event.name.as_str() {
            "SHUTDOWN" => Self::Shutdown { by_guest: flag("guest"), reason: word("reason") },
            "RESET" => Self::Reset { by_guest: flag("guest"), reason: word("reason") },
            "GUEST_PANICKED" | "GUEST_CRASHLOADED" => Self::Panicked,
            "WATCHDOG" => Self::Watchdog,
            "BLOCK_IO_ERROR" => Self::DiskError { disk: word("node-name"), reason: word("reason") },
            "MEMORY_FAILURE" => Self::MemoryFailure,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_of_the_guest_are_told_apart() {
        let of = |name: &str, data| GuestEvent::of(&Event { name: name.into(), data });
        let shutdown = of("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" }));
        assert_eq!(shutdown, Some(GuestEvent::Shutdown { by_guest: true, reason: "guest-shutdown".into() }));
        let error = of("BLOCK_IO_ERROR", json!({ "node-name": "d0", "reason": "No space left on device" }));
        assert_eq!(
            error,
            Some(GuestEvent::DiskError { disk: "d0".into(), reason: "No space left on device".into() })
        );
        assert_eq!(
            of("RESET", Value::Null),
            Some(GuestEvent::Reset { by_guest: false, reason: "unknown".into() })
        );
        assert_eq!(of("STOP", Value::Null), None);
    }
}
