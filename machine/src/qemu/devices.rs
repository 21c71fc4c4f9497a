//! Devices, memory, vCPUs and media that were added to a running QEMU or removed from it, which no earlier state
//! contains.
//!
//! QEMU is asked for them while the guest runs: before the pause in which a state is captured, and after it. Both times
//! all must be as at the attach. A device that came and went in between, or went and came, has sent the event
//! `DEVICE_DELETED`; for one that is added, QEMU has no event.

use std::collections::{BTreeMap, BTreeSet};

use retrovisor_guest::{Accelerator, MachineError};
use serde_json::{Value, json};

use super::message::Version;
use super::monitor::{Monitor, text};

/// QEMU's containers of the devices from its command line or `device_add` (including added vCPUs and DIMMs): those with
/// a name, and those without.
const CONTAINERS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// What can be added to a running QEMU, and removed from it.
#[derive(Default)]
pub(super) struct Devices {
    /// The devices by path, each with its type. The same in every process that is started with the same options.
    pub(super) peripherals: BTreeMap<String, String>,
    /// The paths of the vCPUs; those that were added are among the peripherals as well.
    vcpus: BTreeMap<String, String>,
    /// The block node of each device with a medium, by the device's path. QEMU numbers nodes without a name in each
    /// process.
    media: BTreeMap<String, String>,
    /// Bytes of each memory device that has any.
    memory: BTreeMap<String, String>,
    /// Whether this QEMU never finishes saving its state after a vCPU was unplugged.
    hangs_after_unplug: bool,
    /// Whether a state was captured since the last check.
    is_captured: bool,
}

/// With older versions, the thread of an unplugged vCPU under TCG is waited for without end when a state is saved.
const UNPLUG_VERSION_MIN: Version = Version { major: 10, minor: 0, micro: 0 };

impl Devices {
    /// The devices that QEMU has now: one round trip, without access to a disk.
    pub(super) fn of(monitor: &mut Monitor) -> Result<Self, MachineError> {
        let [named, unnamed] = CONTAINERS.map(|path| ("qom-list", json!({ "path": path })));
        let queries = ["query-cpus-fast", "query-blockstats", "query-memory-devices"];
        let [vcpus, media, memory] = queries.map(|query| (query, json!({})));
        let answers = monitor.execute_all(&[named, unnamed, vcpus, media, memory])?;
        Ok(match &answers[..] {
            [named, unnamed, vcpus, media, memory] => Self::parse([named, unnamed], vcpus, media, memory),
            _ => Self::default(),
        })
    }

    fn parse(containers: [&Value; 2], vcpus: &Value, media: &Value, memory: &Value) -> Self {
        let entries = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let peripherals = CONTAINERS.iter().zip(containers);
        let peripherals = peripherals.flat_map(|(path, list)| children(path, list)).collect();
        let vcpus = entries(vcpus);
        let vcpus =
            vcpus.iter().filter_map(|vcpu| Some((text(vcpu, "qom-path")?.to_owned(), "vCPU".to_owned())));
        let media = entries(media);
        let media = media.iter().filter_map(|medium| {
            let device = text(medium, "qdev").filter(|path| !path.is_empty())?;
            Some((device.to_owned(), text(medium, "node-name")?.to_owned()))
        });
        Self {
            peripherals,
            vcpus: vcpus.collect(),
            media: media.collect(),
            memory: entries(memory).iter().filter_map(memory_of).collect(),
            hangs_after_unplug: false,
            is_captured: false,
        }
    }

    /// The names and sizes of memory devices that have memory.
    pub(super) fn plugged_memory(&self) -> Option<String> {
        let all: Vec<_> = self.memory.iter().map(|(name, bytes)| format!("{name}, {bytes}")).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// The number of vCPUs.
    pub(super) fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Refuses a QEMU that would hang in the first checkpoint, because a vCPU was unplugged before.
    pub(super) fn check_at_attach(
        &mut self,
        monitor: &mut Monitor,
        accelerator: Accelerator,
    ) -> Result<(), MachineError> {
        self.hangs_after_unplug = accelerator == Accelerator::Tcg && monitor.version() < UNPLUG_VERSION_MIN;
        if !self.hangs_after_unplug {
            return Ok(());
        }
        // A machine without ACPI refuses the query, and unplugs no vCPU.
        let reports = monitor.execute("query-acpi-ospm-status", &json!({})).unwrap_or_default();
        if has_ejected(&reports) { Err(unplugged(monitor.version())) } else { Ok(()) }
    }

    /// A state is about to be captured. Refuses a QEMU that would hang, by the events that were read.
    pub(super) fn begin_capture(&mut self, monitor: &Monitor) -> Result<(), MachineError> {
        self.is_captured = true;
        self.must_not_hang(monitor)
    }

    /// Refuses a machine whose devices have changed, with their names. If a state was captured since the last call,
    /// also one from which a device was removed since that call, and whose devices are as before again.
    pub(super) fn check(&mut self, monitor: &mut Monitor) -> Result<(), MachineError> {
        monitor.read_events()?;
        if !std::mem::take(&mut self.is_captured) {
            monitor.take_deleted_devices();
        }
        let now = Self::of(monitor)?;
        monitor.read_events()?;
        self.must_not_hang(monitor)?;
        let deleted = monitor.take_deleted_devices();
        match self.difference(&now).or_else(|| removed(&deleted)) {
            None => Ok(()),
            Some(what) => Err(MachineError::Unsupported {
                what: format!("a checkpoint of a machine whose devices changed while it ran ({what})"),
                help: "Undo the change in QEMU, or detach the machine and attach it again: it then cannot go back to \
                       earlier checkpoints"
                    .into(),
            }),
        }
    }

    fn must_not_hang(&self, monitor: &Monitor) -> Result<(), MachineError> {
        if self.hangs_after_unplug && monitor.has_lost_vcpu() {
            return Err(unplugged(monitor.version()));
        }
        Ok(())
    }

    fn difference(&self, now: &Self) -> Option<String> {
        let mut all = differences(&self.peripherals, &now.peripherals);
        // A vCPU that was added is a peripheral, too.
        let is_new =
            |path: &String| !self.peripherals.contains_key(path) && !now.peripherals.contains_key(path);
        let other = |vcpus: &BTreeMap<String, String>| {
            vcpus
                .iter()
                .filter(|(path, _)| is_new(path))
                .map(|(path, kind)| (path.clone(), kind.clone()))
                .collect()
        };
        all.extend(differences(&other(&self.vcpus), &other(&now.vcpus)));
        // A medium comes and goes with its device.
        let is_kept = |device: &String| {
            let (before, now) = (self.peripherals.keys(), now.peripherals.keys());
            let owner =
                |path: &&String| device.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/'));
            before.clone().filter(owner).eq(now.filter(owner))
        };
        let media: BTreeSet<_> = self.media.keys().chain(now.media.keys()).collect();
        for device in media.into_iter().filter(|device| is_kept(device)) {
            let of = short(device);
            match (self.media.get(device), now.media.get(device)) {
                (Some(before), Some(now)) if before != now => {
                    all.push(format!("the medium of {of} was changed: {before} to {now}"));
                }
                (Some(before), None) => all.push(format!("the medium {before} of {of} was removed")),
                (None, Some(now)) => all.push(format!("the medium {now} of {of} was added")),
                _ => {}
            }
        }
        for (name, bytes) in &now.memory {
            // That of a new device goes with it.
            let is_known = self.peripherals.contains_key(&format!("{}/{name}", CONTAINERS[0]));
            if self.memory.get(name) != Some(bytes) && is_known {
                all.push(format!("{name} has {bytes} of memory now"));
            }
        }
        (!all.is_empty()).then(|| all.join(", "))
    }
}

fn unplugged(version: Version) -> MachineError {
    MachineError::Unsupported {
        what: format!("a checkpoint under QEMU {version} and TCG after a vCPU was removed (QEMU would hang)"),
        help: "Start QEMU again, or use QEMU 10 or later".into(),
    }
}

/// Whether QEMU's list of the guest's ACPI reports has a vCPU that was ejected.
fn has_ejected(reports: &Value) -> bool {
    /// The guest completed an ejection: OSPM's source event 3, status 0.
    const EJECTED: (u64, u64) = (3, 0);
    let number = |report: &Value, field| report.get(field).and_then(Value::as_u64);
    reports.as_array().into_iter().flatten().any(|report| {
        text(report, "slot-type") == Some("CPU")
            && number(report, "source").zip(number(report, "status")) == Some(EJECTED)
    })
}

/// Which devices were added and removed, in words.
pub(super) fn differences(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let named = |(path, kind): (&String, &String)| format!("{} ({kind})", short(path));
    // A path may be used again for another type.
    let added = now.iter().filter(|(path, kind)| before.get(*path) != Some(kind)).map(named);
    let removed = before.iter().filter(|(path, kind)| now.get(*path) != Some(kind)).map(named);
    let added = added.map(|device| format!("{device} was added"));
    added.chain(removed.map(|device| format!("{device} was removed"))).collect()
}

/// Which devices, of these paths, were removed, in words; a device's own parts are not named.
fn removed(paths: &[String]) -> Option<String> {
    let is_device =
        |path: &&String| path.rsplit_once('/').is_some_and(|(parent, _)| CONTAINERS.contains(&parent));
    let all: Vec<_> =
        paths.iter().filter(is_device).map(|path| format!("{} was removed", short(path))).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// The name of a device: the end of its path, but for a part of it.
fn short(path: &str) -> &str {
    let path = path.strip_suffix("/virtio-backend").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

/// A memory device and its bytes, if it has any: one that can grow may begin without.
fn memory_of(device: &Value) -> Option<(String, String)> {
    let data = device.get("data")?;
    let bytes = data.get("size").and_then(Value::as_u64).filter(|bytes| *bytes > 0)?;
    let kind = text(device, "type").unwrap_or("memory");
    Some((text(data, "id").unwrap_or(kind).to_owned(), format!("{bytes} bytes")))
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

    /// QEMU's answers, with these devices, vCPUs, media and memory devices.
    fn devices(
        names: &[&str],
        vcpus: &[&str],
        media: &[(&str, &str)],
        memory: &[(&str, &str, u64)],
    ) -> Devices {
        let entry = |name: &&str| json!({ "name": name, "type": "child<virtio-blk-pci>" });
        let mut list: Vec<_> = names.iter().map(entry).collect();
        list.push(json!({ "name": "type", "type": "string" }));
        let vcpus: Vec<_> = vcpus.iter().map(|path| json!({ "qom-path": path })).collect();
        let medium = |(name, node): &(&str, &str)| json!({ "qdev": format!("/machine/peripheral/{name}/virtio-backend"), "node-name": node });
        let media: Vec<_> = media.iter().map(medium).collect();
        let memory =
            memory.iter().map(|(kind, id, size)| json!({ "type": kind, "data": { "id": id, "size": size } }));
        let memory: Vec<_> = memory.collect();
        Devices::parse([&json!(list), &json!([])], &json!(vcpus), &json!(media), &json!(memory))
    }

    #[test]
    fn of_a_device_that_was_removed_only_the_device_is_named() {
        let paths =
            ["/machine/peripheral/nic", "/machine/peripheral/nic/virtio-backend", "/machine/unattached/x"];
        let paths = paths.map(str::to_owned);
        assert_eq!(removed(&paths).unwrap(), "nic was removed");
        assert_eq!(removed(&paths[1..]), None);
    }

    const BOOT: &str = "/machine/unattached/device[0]";

    #[test]
    fn devices_that_came_and_went_are_named() {
        let plain = |names: &[&str]| devices(names, &[], &[], &[]);
        let before = plain(&["disk-d0", "rng"]);
        assert_eq!(before.difference(&plain(&["rng", "disk-d0"])), None);
        let difference = before.difference(&plain(&["vd1", "rng"])).unwrap();
        assert_eq!(difference, "vd1 (virtio-blk-pci) was added, disk-d0 (virtio-blk-pci) was removed");
    }

    #[test]
    fn vcpus_are_named_once() {
        let before = devices(&["rng"], &[BOOT], &[], &[]);
        let added = devices(&["rng", "cpu1"], &[BOOT, "/machine/peripheral/cpu1"], &[], &[]);
        assert_eq!(before.difference(&added).unwrap(), "cpu1 (virtio-blk-pci) was added");
        assert_eq!(added.difference(&before).unwrap(), "cpu1 (virtio-blk-pci) was removed");
        let none = devices(&["rng"], &[], &[], &[]);
        assert_eq!(before.difference(&none).unwrap(), "device[0] (vCPU) was removed");
        assert_eq!(added.vcpus(), 2);
    }

    #[test]
    fn an_ejected_vcpu_is_recognized() {
        let report = |kind, source, status| json!([{ "slot-type": kind, "source": source, "status": status, "slot": "1" }]);
        assert!(has_ejected(&report("CPU", 3, 0)));
        for other in
            [report("CPU", 1, 0), report("CPU", 3, 132), report("DIMM", 3, 0), json!([]), Value::Null]
        {
            assert!(!has_ejected(&other), "{other}");
        }
    }

    #[test]
    fn a_medium_that_was_replaced_is_named() {
        let of = |media: &[(&str, &str)]| devices(&["d0", "cd"], &[BOOT], media, &[]);
        let before = of(&[("d0", "#block159")]);
        assert_eq!(before.difference(&of(&[("d0", "#block159")])), None);
        let changed = before.difference(&of(&[("d0", "other")])).unwrap();
        assert_eq!(changed, "the medium of d0 was changed: #block159 to other");
        assert_eq!(before.difference(&of(&[])).unwrap(), "the medium #block159 of d0 was removed");
        let inserted = before.difference(&of(&[("d0", "#block159"), ("cd", "iso")])).unwrap();
        assert_eq!(inserted, "the medium iso of cd was added");
        // It goes with its device.
        let gone = before.difference(&devices(&["cd"], &[BOOT], &[], &[])).unwrap();
        assert_eq!(gone, "d0 (virtio-blk-pci) was removed");
    }

    #[test]
    fn memory_that_grows_is_named() {
        let of = |size| devices(&["vmem0"], &[BOOT], &[], &[("virtio-mem", "vmem0", size)]);
        assert_eq!(of(0).plugged_memory(), None);
        assert_eq!(of(0).difference(&of(0)), None);
        assert_eq!(of(0).difference(&of(4096)).unwrap(), "vmem0 has 4096 bytes of memory now");
        assert_eq!(of(4096).plugged_memory().unwrap(), "vmem0, 4096 bytes");
        // That of a new device goes with it.
        let dimm = devices(&["vmem0", "dimm1"], &[BOOT], &[], &[("dimm", "dimm1", 4096)]);
        assert_eq!(of(0).difference(&dimm).unwrap(), "dimm1 (virtio-blk-pci) was added");
    }
}
