//! Devices that were added to a running QEMU or removed from it, which no earlier state contains.

use std::collections::BTreeMap;

use retrovisor_guest::MachineError;
use serde_json::{Value, json};

use super::monitor::{Monitor, text};

/// QEMU's containers of the devices from its command line or `device_add` (including added vCPUs and DIMMs): those with
/// a name, and those without.
const CONTAINERS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// The devices of a machine at the attach, by path; each with its type.
pub(super) struct Devices(BTreeMap<String, String>);

impl Devices {
    /// The devices that QEMU has now.
    pub(super) fn of(monitor: &mut Monitor) -> Result<Self, MachineError> {
        let list = CONTAINERS.map(|path| ("qom-list", json!({ "path": path })));
        let answers = monitor.execute_both(list)?;
        let all = CONTAINERS.iter().zip(&answers);
        Ok(Self(all.flat_map(|(container, answer)| children(container, answer)).collect()))
    }

    /// Refuses a machine whose devices have changed, with their names.
    pub(super) fn check(&self, monitor: &mut Monitor) -> Result<(), MachineError> {
        match self.difference(&Self::of(monitor)?) {
            None => Ok(()),
            Some(what) => Err(MachineError::Unsupported {
                what: format!("a checkpoint of a machine whose devices changed while it ran ({what})"),
                help: "Undo the change in QEMU, or attach the machine again: its history then begins again"
                    .into(),
            }),
        }
    }

    fn difference(&self, now: &Self) -> Option<String> {
        let named = |(path, kind): (&String, &String)| {
            format!("{} ({kind})", path.rsplit('/').next().unwrap_or(path))
        };
        let added = now.0.iter().filter(|(path, _)| !self.0.contains_key(*path)).map(named);
        let removed = self.0.iter().filter(|(path, _)| !now.0.contains_key(*path)).map(named);
        let added = added.map(|device| format!("{device} was added"));
        let all: Vec<_> = added.chain(removed.map(|device| format!("{device} was removed"))).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
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
            Devices(children(CONTAINERS[0], &json!(list)).collect())
        };
        let before = devices(&["disk-d0", "rng"]);
        assert_eq!(before.difference(&devices(&["rng", "disk-d0"])), None);
        let difference = before.difference(&devices(&["vd1", "rng"])).unwrap();
        assert_eq!(difference, "vd1 (virtio-blk-pci) was added, disk-d0 (virtio-blk-pci) was removed");
    }
}
