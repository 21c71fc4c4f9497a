//! The state of vCPUs and devices, out of QEMU as bytes and back in.
//!
//! QEMU saves it into an internal snapshot of a qcow2 file. Two such files lie in memory that this process and QEMU
//! share: one that QEMU saves into, from which the bytes are then read; and one that is made anew around the bytes
//! that QEMU is to load. With `x-ignore-shared` on, the guest's memory is in neither.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use retrovisor_guest::MachineError;
use serde_json::{Value, json};

use super::memory_file;
use super::monitor::{Monitor, text};
use super::qcow2::vmstate;
use super::stream::is_stream;

/// What the names of all nodes of ours begin with; a user's cannot be told from them otherwise.
const NODE_PREFIX: &str = "retrovisor-";

/// The name of both files, for who looks at QEMU's descriptors.
const NAME: &std::ffi::CStr = c"retrovisor-state";

pub(super) struct DeviceState {
    save: File,
    save_node: String,
    load: File,
    load_node: String,
    /// The set of file descriptors in QEMU through which it opens `load`.
    load_set: u64,
    /// Snapshots in `save` whose bytes were read.
    done: Vec<String>,
}

impl DeviceState {
    /// Gives QEMU the two files. Takes away what an earlier process of ours may have left.
    pub(super) fn set_up(monitor: &mut Monitor) -> Result<Self, MachineError> {
        let nodes = monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
        for node in nodes.as_array().into_iter().flatten().filter_map(|node| text(node, "node-name")) {
            if node.starts_with(NODE_PREFIX) {
                monitor.execute("blockdev-del", &json!({ "node-name": node }))?;
            }
        }
        monitor.execute(
            "migrate-set-capabilities",
            &json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] }),
        )?;
        let (save, load) = (memory_file::create(NAME, &vmstate::empty())?, memory_file::create(NAME, &[])?);
        let save_set = give(monitor, &save)?;
        let load_set = give(monitor, &load)?;
        // The set's number keeps the names of two processes of ours apart.
        let (save_node, load_node) =
            (format!("{NODE_PREFIX}save-{save_set}"), format!("{NODE_PREFIX}load-{load_set}"));
        let state = Self { save, save_node, load, load_node, load_set, done: Vec::new() };
        monitor.execute("blockdev-add", &node(&state.save_node, save_set))?;
        Ok(state)
    }

    /// Saves the state of the paused machine, and with it a snapshot named `tag` in each of `disks`.
    pub(super) fn save(
        &mut self,
        monitor: &mut Monitor,
        tag: &str,
        disks: &[String],
    ) -> Result<Vec<u8>, MachineError> {
        let mut devices = vec![self.save_node.clone()];
        devices.extend_from_slice(disks);
        monitor.job("snapshot-save", json!({ "tag": tag, "vmstate": self.save_node, "devices": devices }))?;
        self.done.push(tag.to_owned());
        let stream = vmstate::extract(&self.save, tag).and_then(|stream| {
            if is_stream(&stream) {
                Ok(stream)
            } else {
                Err("QEMU saved something else than device state".into())
            }
        });
        stream.map_err(|message| {
            // Without the bytes the disks' snapshots are of no use.
            let _ = monitor.job("snapshot-delete", json!({ "tag": tag, "devices": disks }));
            MachineError::Driver { doing: "reading the device state that QEMU saved".into(), message }
        })
    }

    /// States that QEMU saved and that were read.
    pub(super) fn untidy(&self) -> usize {
        self.done.len()
    }

    /// Frees what QEMU saved and was read. Not needed for anything but room: meant for after the pause.
    pub(super) fn tidy(&mut self, monitor: &mut Monitor) -> Result<(), MachineError> {
        while let Some(tag) = self.done.last() {
            monitor.job("snapshot-delete", json!({ "tag": tag, "devices": [self.save_node] }))?;
            self.done.pop();
        }
        Ok(())
    }

    /// Loads a state into the paused machine, and puts `disks` back to their snapshots named `tag`.
    pub(super) fn load(
        &mut self,
        monitor: &mut Monitor,
        tag: &str,
        disks: &[String],
        stream: &[u8],
    ) -> Result<(), MachineError> {
        let doing = || "giving QEMU the device state".to_owned();
        if !is_stream(stream) {
            return Err(MachineError::Driver {
                doing: doing(),
                message: "it is not a stream of QEMU's".into(),
            });
        }
        let image = vmstate::with_snapshot(tag, stream)
            .ok_or_else(|| MachineError::Driver { doing: doing(), message: "it is too long".into() })?;
        let io = |source| MachineError::Io { doing: doing(), source };
        self.load.set_len(0).map_err(io)?;
        self.load.write_all_at(&image, 0).map_err(io)?;
        monitor.execute("blockdev-add", &node(&self.load_node, self.load_set))?;
        let mut devices = vec![self.load_node.clone()];
        devices.extend_from_slice(disks);
        let loaded = monitor
            .job("snapshot-load", json!({ "tag": tag, "vmstate": self.load_node, "devices": devices }));
        let removed = monitor.execute("blockdev-del", &json!({ "node-name": self.load_node }));
        loaded?;
        removed?;
        Ok(())
    }
}

fn node(name: &str, set: u64) -> Value {
    json!({
        "driver": "qcow2", "node-name": name, "cache": { "no-flush": true },
        "file": { "driver": "file", "filename": format!("/dev/fdset/{set}"), "cache": { "no-flush": true } },
    })
}

/// Passes a file to QEMU; the number of the set it is in.
fn give(monitor: &mut Monitor, file: &File) -> Result<u64, MachineError> {
    let answer = monitor.execute_with_fd("add-fd", &json!({ "opaque": "retrovisor" }), file.as_fd())?;
    answer.get("fdset-id").and_then(Value::as_u64).ok_or_else(|| MachineError::Driver {
        doing: "passing a file to QEMU".into(),
        message: "its answer names no set".into(),
    })
}
