//! Devices that were added to a running QEMU or removed from it, which no earlier state contains.
//!
//! QEMU is asked for its list of devices while the guest runs: before the pause in which a state is captured, and after
//! it. Both times it must be the list at the attach. A device that came and went in between, or went and came, has sent
//! the event `DEVICE_DELETED`; for one that is added, QEMU has no event.

use std::collections::BTreeMap;

use retrovisor_guest::MachineError;
use serde_json::{Value, json};

use super::monitor::{Monitor, text};

/// QEMU's containers of the devices from its command line or `device_add` (including added vCPUs and DIMMs): those with
/// a name, and those without.
const CONTAINERS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// The devices of a machine.
pub(super) struct Devices {
    at_attach: DeviceList,
    /// Whether a state was captured since the last check.
    is_captured: bool,
}

impl Devices {
    /// The devices that QEMU has now.
    pub(super) fn of(monitor: &mut Monitor) -> Result<Self, MachineError> {
        Ok(Self { at_attach: DeviceList::of(monitor)?, is_captured: false })
    }

    /// A state is captured.
    pub(super) fn note_capture(&mut self) {
        self.is_captured = true;
    }

    /// Refuses a machine whose devices have changed, with their names. If a state was captured since the last call,
    /// also one whose devices changed since that call and are as before again.
    pub(super) fn check(&mut self, monitor: &mut Monitor) -> Result<(), MachineError> {
        monitor.read_events()?;
        if !std::mem::take(&mut self.is_captured) {
            monitor.take_deleted_devices();
        }
        let now = DeviceList::of(monitor)?;
        // The events of what is missing in the list arrive before it.
        monitor.read_events()?;
        let deleted = monitor.take_deleted_devices();
        match self.at_attach.difference(&now).or_else(|| removed(&deleted)) {
            None => Ok(()),
            Some(what) => Err(MachineError::Unsupported {
                what: format!("a checkpoint of a machine whose devices changed while it ran ({what})"),
                help: "Undo the change in QEMU, or attach the machine again: its history then begins again"
                    .into(),
            }),
        }
    }
}

/// Devices by path, each with its type.
struct DeviceList(BTreeMap<String, String>);

impl DeviceList {
    /// Those that QEMU has now.
    fn of(monitor: &mut Monitor) -> Result<Self, MachineError> {
        let list = CONTAINERS.map(|path| ("qom-list", json!({ "path": path })));
        let answers = monitor.execute_both(list)?;
        let all = CONTAINERS.iter().zip(&answers);
        Ok(Self(all.flat_map(|(container, answer)| children(container, answer)).collect()))
    }

    fn difference(&self, now: &Self) -> Option<String> {
        let named = |(path, kind): (&String, &String)| format!("{} ({kind})", name(path));
        let added = now.0.iter().filter(|(path, _)| !self.0.contains_key(*path)).map(named);
        let removed = self.0.iter().filter(|(path, _)| !now.0.contains_key(*path)).map(named);
        let added = added.map(|device| format!("{device} was added"));
        let all: Vec<_> = added.chain(removed.map(|device| format!("{device} was removed"))).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

/// Which devices, of these paths, were removed; a device's own parts are not named.
fn removed(deleted: &[String]) -> Option<String> {
    let is_device =
        |path: &&String| path.rsplit_once('/').is_some_and(|(parent, _)| CONTAINERS.contains(&parent));
    let all: Vec<_> =
        deleted.iter().filter(is_device).map(|path| format!("{} was removed", name(path))).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// The last part of a path.
fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The children of a container; its other properties have types of another form.
fn children<'a>(container: &'a str, answer: &'a Value) -> impl Iterator<Item = (String, String)> + 'a {
    answer.as_array().into_iter().flatten().filter_map(move |entry| {
        let kind = text(entry, "type")?.strip_prefix("child<")?.strip_suffix('>')?;
        Some((format!("{container}/{}", text(entry, "name")?), kind.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_came_and_went_are_named() {
        let devices = |names: &[&str]| {
            let entry = |name: &&str| json!({ "name": name, "type": "child<virtio-blk-pci>" });
            let mut list: Vec<_> = names.iter().map(entry).collect();
            list.push(json!({ "name": "type", "type": "string" }));
            DeviceList(children(CONTAINERS[0], &json!(list)).collect())
        };
        let before = devices(&["disk-d0", "rng"]);
        assert_eq!(before.difference(&devices(&["rng", "disk-d0"])), None);
        let difference = before.difference(&devices(&["vd1", "rng"])).unwrap();
        assert_eq!(difference, "vd1 (virtio-blk-pci) was added, disk-d0 (virtio-blk-pci) was removed");
    }

    #[test]
    fn of_a_device_that_was_removed_only_the_device_is_named() {
        let paths =
            ["/machine/peripheral/nic", "/machine/peripheral/nic/virtio-backend", "/machine/unattached/x"];
        let paths = paths.map(str::to_owned);
        assert_eq!(removed(&paths).unwrap(), "nic was removed");
        assert_eq!(removed(&paths[1..]), None);
    }
}
