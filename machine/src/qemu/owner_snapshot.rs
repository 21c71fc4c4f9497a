//! Snapshots of another client of QEMU (`savevm`, `virsh snapshot-create`) that lack the guest's memory.
//!
//! QEMU executes the commands of its clients in turns. One that arrives during a job of this driver is therefore
//! executed after the job and before the command that switches `x-ignore-shared` off, and a `savevm` then omits the
//! memory without an error. The guest is still paused at that time, so the same snapshot can be saved again, with the
//! memory.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use retrovisor_guest::MachineError;
use serde_json::{Value, json};

use super::disk::TAG_PREFIX;
use super::monitor::{Monitor, text};

/// How much longer the state of the same devices may be in another snapshot: two saves differ in few bytes.
const SLACK_BYTES: u64 = 1 << 16;

/// Saves those snapshots of the pause that began at `since` again, with the memory. `state_bytes` is the length of the
/// state of the devices alone. Must be called in the same pause, with `x-ignore-shared` off.
pub(super) fn save_again(
    monitor: &mut Monitor,
    since: SystemTime,
    state_bytes: u64,
) -> Result<(), MachineError> {
    let nodes = monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
    let since_s = since.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    for name in without_memory(&nodes, since_s, state_bytes) {
        let failed = |message: String| MachineError::Driver {
            doing: format!("saving the snapshot {name} of another program again, with the guest's memory"),
            message,
        };
        // The command's word is quoted.
        if name.contains(['"', '\\']) || name.contains(char::is_control) {
            return Err(failed("its name cannot be used in a command".into()));
        }
        let answer = monitor.human(&format!("savevm \"{name}\""))?;
        if !answer.trim().is_empty() {
            return Err(failed(answer.trim().to_owned()));
        }
        tracing::warn!(
            snapshot = name,
            "another program saved a snapshot while x-ignore-shared was on: it was saved again, with the memory"
        );
    }
    Ok(())
}

/// The names of the snapshots since a time with a state that is no longer than that of the devices.
fn without_memory(nodes: &Value, since_s: u64, state_bytes: u64) -> Vec<String> {
    let nodes = nodes.as_array().into_iter().flatten();
    let snapshots = nodes.filter_map(|node| node.get("image")?.get("snapshots")?.as_array()).flatten();
    let lacking = snapshots.filter(|snapshot| {
        let number = |field| snapshot.get(field).and_then(Value::as_u64).unwrap_or(0);
        let bytes = number("vm-state-size");
        number("date-sec") >= since_s && bytes > 0 && bytes <= state_bytes + SLACK_BYTES
    });
    let mut names: Vec<_> =
        lacking.filter_map(|snapshot| text(snapshot, "name")).map(str::to_owned).collect();
    names.retain(|name| !name.starts_with(TAG_PREFIX));
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_states_of_others_lack_the_memory() {
        let snapshot = |name: &str, date: u64, bytes: u64| json!({ "name": name, "date-sec": date, "vm-state-size": bytes });
        let of_disk = [snapshot("rv-1", 9, 400_000), snapshot("disk", 9, 0), snapshot("bad", 9, 400_100)];
        let of_other =
            [snapshot("bad", 9, 400_100), snapshot("good", 9, 90_000_000), snapshot("old", 8, 400_000)];
        let nodes =
            json!([{ "image": { "snapshots": of_disk } }, { "image": { "snapshots": of_other } }, {}]);
        assert_eq!(without_memory(&nodes, 9, 400_000), ["bad"]);
        assert_eq!(without_memory(&nodes, 9, 100_000), [""; 0]);
    }
}
