//! The disks of a running QEMU.

use std::path::{Path, PathBuf};

use retrovisor_guest::{DiskShape, MachineError};
use serde_json::{Value, json};

use super::base::Base;
use super::blocks::OverlayBlocks;
use super::changes::OverlayChanges;
use crate::qemu::monitor::{Monitor, text};

/// A writable disk of the running machine.
pub(in crate::qemu) struct AttachedDisk {
    /// The disk's name in checkpoints: the same in every process that is started with the same options.
    pub(in crate::qemu) name: String,
    /// QEMU's name of its block node in this process.
    pub(in crate::qemu) node: String,
    /// The host's file. A disk that is no file of this host (a network disk) has none, and its durability is its own.
    pub(in crate::qemu) path: Option<PathBuf>,
    /// The device's path in QEMU.
    pub(in crate::qemu) device: Option<String>,
    /// Its description, if its blocks can be read from outside.
    pub(in crate::qemu) shape: Option<DiskShape>,
}

impl AttachedDisk {
    /// The writable disks of the running machine. Refuses disks that cannot be rolled back with the memory.
    pub(in crate::qemu) fn list(monitor: &mut Monitor) -> Result<Vec<Self>, MachineError> {
        let answer = monitor.execute("query-block", &json!({}))?;
        let mut disks = Vec::new();
        for device in answer.as_array().into_iter().flatten() {
            let Some(inserted) = device.get("inserted") else { continue };
            if inserted.get("ro") == Some(&Value::Bool(true)) {
                continue;
            }
            let Some(node) = text(inserted, "node-name") else { continue };
            let driver = text(inserted, "drv");
            if driver != Some("qcow2") {
                return Err(MachineError::Unsupported {
                    what: format!(
                        "going back with the writable disk {node} ({}, format {})",
                        text(inserted, "file").unwrap_or("no file"),
                        driver.unwrap_or("unknown")
                    ),
                    help: "Only qcow2 disks can go back. Stop the guest, make an overlay with `qemu-img create \
                           -f qcow2 -b DISK -F raw OVERLAY.qcow2`, and start QEMU with the overlay, or attach the \
                           disk with readonly=on"
                        .into(),
                });
            }
            let mut disk = Self {
                name: name(device, node).to_owned(),
                node: node.to_owned(),
                path: text(inserted, "file").map(PathBuf::from).filter(|path| path.is_file()),
                device: text(device, "qdev").filter(|path| !path.is_empty()).map(str::to_owned),
                shape: None,
            };
            let size_bytes = inserted.get("image").and_then(|image| image.get("virtual-size")?.as_u64());
            match disk.shape_of(size_bytes) {
                Ok(shape) => disk.shape = Some(shape),
                Err(reason) => tracing::warn!(
                    disk = node,
                    reason,
                    "the disk's contents go back with snapshots in its image only, and are not in the store"
                ),
            }
            disks.push(disk);
        }
        Ok(disks)
    }

    /// Whether its blocks can be read from outside, and its description.
    fn shape_of(&self, size_bytes: Option<u64>) -> Result<DiskShape, String> {
        let path = self.path.as_ref().ok_or("it is no file of this host")?;
        let size_bytes = size_bytes.ok_or("QEMU does not report its size")?;
        // The missing snapshot is checked last: everything else is in order then.
        let base = Base::of(path)?;
        crate::qemu::qcow2::disk::Disk::now(std::fs::File::open(path).map_err(|error| error.to_string())?)?;
        Ok(DiskShape { name: self.name.clone(), size_bytes, base: base.map(|(identity, _)| identity) })
    }

    /// Whether a checkpoint means this disk. Those of earlier versions have the node's name.
    pub(in crate::qemu) fn is_named(&self, name: &str) -> bool {
        self.name == name || self.node == name
    }

    /// The blocks that differ between two snapshots.
    pub(in crate::qemu) fn changes(
        &self,
        at: &str,
        since: Option<&str>,
    ) -> Result<OverlayChanges, MachineError> {
        let path = self.readable()?;
        let base = Base::of(path).map_err(|message| self.unreadable(message))?;
        OverlayChanges::new(&self.name, path, base.map(|(_, base)| base), at, since)
    }

    /// The blocks at a snapshot.
    pub(in crate::qemu) fn blocks(&self, at: &str) -> Result<OverlayBlocks, MachineError> {
        OverlayBlocks::new(&self.name, self.readable()?, at)
    }

    /// Its file, if its blocks can be read from outside.
    fn readable(&self) -> Result<&Path, MachineError> {
        let path = self.path.as_deref().filter(|_| self.shape.is_some());
        path.ok_or_else(|| self.unreadable("its blocks cannot be read from outside".into()))
    }

    fn unreadable(&self, message: String) -> MachineError {
        MachineError::Driver { doing: format!("reading disk {}", self.name), message }
    }
}

/// A name that another process with the same options has, too: the drive's, else a node's that was given one (QEMU's own
/// begin with `#` and count), else the device's path.
fn name<'a>(device: &'a Value, node: &'a str) -> &'a str {
    let given = |name: &'a str| (!name.is_empty() && !name.starts_with('#')).then_some(name);
    let drive = text(device, "device").and_then(given);
    drive.or_else(|| given(node)).or_else(|| text(device, "qdev").and_then(given)).unwrap_or(node)
}

/// The names of the node's internal snapshots, oldest first, from QEMU's list of nodes.
pub(in crate::qemu) fn snapshots<'a>(nodes: &'a Value, node: &'a str) -> impl Iterator<Item = &'a str> {
    let nodes = nodes.as_array().into_iter().flatten();
    let own = nodes.filter(move |entry| text(entry, "node-name") == Some(node));
    let snapshots = own.filter_map(|entry| entry.get("image")?.get("snapshots")?.as_array()).flatten();
    snapshots.filter_map(|snapshot| text(snapshot, "name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_name_that_another_process_gives_it_too() {
        let device = |device: &str, qdev: &str| json!({ "device": device, "qdev": qdev });
        assert_eq!(name(&device("d0", "/machine/peripheral-anon/device[0]"), "#block159"), "d0");
        assert_eq!(name(&device("", "/machine/peripheral/disk/virtio-backend"), "root"), "root");
        let path = "/machine/peripheral-anon/device[0]/virtio-backend";
        assert_eq!(name(&device("", path), "#block159"), path);
        assert_eq!(name(&json!({}), "#block159"), "#block159");
    }

    #[test]
    fn snapshots_are_looked_up_by_node() {
        let nodes = json!([{ "node-name": "d0", "image": { "snapshots": [{ "name": "t" }] } }, { "node-name": "d1", "image": {} }]);
        assert!(snapshots(&nodes, "d0").eq(["t"]));
        assert!(snapshots(&nodes, "d1").chain(snapshots(&json!(3), "d0")).eq([""; 0]));
    }
}
