use retrovisor_guest::GuestEvent;
use serde_json::Value;

use super::message::Event;

/// The meaning of an event of QEMU for the guest, if any. `STOP` and `RESUME` are not among them: the monitor knows
/// whether it caused them.
pub(super) fn guest_event(event: &Event) -> Option<GuestEvent> {
    let flag = |name| event.data.get(name) == Some(&Value::Bool(true));
    let word = |name| event.data.get(name).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    Some(match event.name.as_str() {
        "SHUTDOWN" => GuestEvent::Shutdown { by_guest: flag("guest"), reason: word("reason") },
        "RESET" => GuestEvent::Reset { by_guest: flag("guest"), reason: word("reason") },
        "GUEST_PANICKED" | "GUEST_CRASHLOADED" => GuestEvent::Panicked,
        "WATCHDOG" => GuestEvent::Watchdog,
        "BLOCK_IO_ERROR" => GuestEvent::DiskError {
            disk: word("node-name"),
            reason: word("reason"),
            is_stopped: stops_guest(event),
        },
        "MEMORY_FAILURE" => GuestEvent::MemoryFailure,
        _ => return None,
    })
}

/// Whether QEMU stops the vCPUs for the cause of this event.
pub(super) fn stops_guest(event: &Event) -> bool {
    let action = event.data.get("action").and_then(Value::as_str);
    match event.name.as_str() {
        "SHUTDOWN" => true,
        "GUEST_PANICKED" => action != Some("run"),
        "BLOCK_IO_ERROR" => action == Some("stop"),
        "WATCHDOG" => action == Some("pause"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_of_the_guest_are_distinguished() {
        let of = |name: &str, data| guest_event(&Event { name: name.into(), data });
        let shutdown = of("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" }));
        assert_eq!(shutdown, Some(GuestEvent::Shutdown { by_guest: true, reason: "guest-shutdown".into() }));
        for (action, is_stopped) in [("stop", true), ("report", false)] {
            let data = json!({ "node-name": "d0", "reason": "No space left on device", "action": action });
            let (disk, reason) = ("d0".into(), "No space left on device".into());
            assert_eq!(of("BLOCK_IO_ERROR", data), Some(GuestEvent::DiskError { disk, reason, is_stopped }));
        }
        assert_eq!(
            of("RESET", Value::Null),
            Some(GuestEvent::Reset { by_guest: false, reason: "unknown".into() })
        );
        assert_eq!(of("STOP", Value::Null), None);
    }
}
