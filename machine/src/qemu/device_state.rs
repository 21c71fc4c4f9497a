//! The state of vCPUs and devices, as bytes that QEMU saves and loads.
//!
//! QEMU saves it into an internal snapshot of a qcow2 file. There are two such files in memory that this process and
//! QEMU share: one into which QEMU saves, from which the bytes are then read; and one that is made from the bytes that
//! QEMU is to load. The capability `x-ignore-shared` excludes the guest's memory from both. It is on during these jobs
//! only: with it, the owner's `savevm` or migration would silently lack the memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use retrovisor_guest::MachineError;
use serde_json::{Value, json};

use super::fd_set::FdSet;
use super::memory_file;
use super::migration;
use super::monitor::{Monitor, text};
use super::owner_snapshot;
use super::qcow2::vmstate;
use super::stream::is_stream;

/// The prefix of the names of all block nodes that this driver makes, which distinguishes them from a user's.
const NODE_PREFIX: &str = "retrovisor-";

/// The capability that excludes shared memory from all that QEMU saves.
const EXCLUDES_MEMORY: &str = "x-ignore-shared";

/// The capability with which a migration waits before it completes. It is on together with the other, so that one that
/// another client begins meanwhile cannot complete without the memory before it is cancelled.
const HOLDS_MIGRATIONS: &str = "pause-before-switchover";

/// The name of both files in QEMU's list of descriptors.
const NAME: &std::ffi::CStr = c"retrovisor-state";

/// Who else sends commands to QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clients {
    /// Nobody: this project launched it.
    One,
    /// The program that started it has a monitor of its own.
    Several,
}

/// Capabilities of migrations that this driver changes for its own jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capabilities {
    /// [`EXCLUDES_MEMORY`].
    excludes_memory: bool,
    /// [`HOLDS_MIGRATIONS`].
    holds_migrations: bool,
}

impl Capabilities {
    /// During a job of this driver.
    const JOB: Self = Self { excludes_memory: true, holds_migrations: true };

    fn read(monitor: &mut Monitor) -> Result<Self, MachineError> {
        let all = monitor.execute("query-migrate-capabilities", &json!({}))?;
        Ok(Self {
            excludes_memory: is_on(&all, EXCLUDES_MEMORY),
            holds_migrations: is_on(&all, HOLDS_MIGRATIONS),
        })
    }

    fn set(self, monitor: &mut Monitor) -> Result<(), MachineError> {
        let capabilities = json!([
            { "capability": EXCLUDES_MEMORY, "state": self.excludes_memory },
            { "capability": HOLDS_MIGRATIONS, "state": self.holds_migrations },
        ]);
        monitor.execute("migrate-set-capabilities", &json!({ "capabilities": capabilities })).map(drop)
    }
}

pub(super) struct DeviceState {
    save: File,
    save_node: String,
    load: File,
    load_node: String,
    /// The set of file descriptors in QEMU through which it opens `load`.
    load_set: FdSet,
    /// The capabilities as the owner has set them.
    owners: Capabilities,
    /// Those that are in force: others outside a job if they could not be restored yet.
    current: Capabilities,
    clients: Clients,
    /// Snapshots in `save` whose bytes were read.
    done: Vec<String>,
}

impl DeviceState {
    /// Passes the two files to QEMU. Removes those that an earlier process of this driver may have left.
    pub(super) fn set_up(monitor: &mut Monitor, clients: Clients) -> Result<Self, MachineError> {
        let nodes = monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
        let mut is_first = true;
        for node in nodes.as_array().into_iter().flatten().filter_map(|node| text(node, "node-name")) {
            if node.starts_with(NODE_PREFIX) {
                monitor.execute("blockdev-del", &json!({ "node-name": node }))?;
                is_first = false;
            }
        }
        FdSet::remove_all(monitor)?;
        let current = Capabilities::read(monitor)?;
        // An earlier process that was killed in the middle of a job left them on.
        let is_left = !is_first && current.excludes_memory;
        let owners = Capabilities {
            excludes_memory: current.excludes_memory && !is_left,
            holds_migrations: current.holds_migrations && !is_left,
        };
        let (save, load) = (memory_file::create(NAME, &vmstate::empty())?, memory_file::create(NAME, &[])?);
        let save_set = FdSet::add(monitor, &save)?;
        let load_set = FdSet::add(monitor, &load)?;
        // The number of the set makes names of two processes of this driver different.
        let (save_node, load_node) =
            (format!("{NODE_PREFIX}save-{}", save_set.id()), format!("{NODE_PREFIX}load-{}", load_set.id()));
        let mut state =
            Self { save, save_node, load, load_node, load_set, owners, current, clients, done: Vec::new() };
        state.restore_capabilities(monitor);
        monitor.execute("blockdev-add", &node(&state.save_node, &save_set))?;
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
        let arguments = json!({ "tag": tag, "vmstate": self.save_node, "devices": devices });
        let begin = SystemTime::now();
        self.job_without_memory(monitor, "snapshot-save", arguments)?;
        self.done.push(tag.to_owned());
        let stream = vmstate::extract(&self.save, tag).and_then(|stream| {
            if is_stream(&stream) {
                Ok(stream)
            } else {
                Err("QEMU saved something else than device state".into())
            }
        });
        if let Ok(stream) = &stream {
            self.repair_owner_snapshots(monitor, begin, stream);
        }
        stream.map_err(|message| {
            // Without the bytes the disks' snapshots are useless.
            let _ = monitor.job("snapshot-delete", json!({ "tag": tag, "devices": disks }));
            MachineError::Driver { doing: "reading the device state that QEMU saved".into(), message }
        })
    }

    /// Removes everything that was added to QEMU. Tries every step; returns what could not be removed.
    pub(super) fn remove(&mut self, monitor: &mut Monitor) -> Vec<String> {
        self.restore_capabilities(monitor);
        let mut left = Vec::new();
        if self.current != self.owners {
            left.push("the migration capability x-ignore-shared is still on".to_owned());
        }
        let node = &self.save_node;
        if let Err(error) = monitor.execute("blockdev-del", &json!({ "node-name": node })) {
            left.push(format!("the block node {node}: {error}"));
        }
        // Not only those of this object: blocks of disks pass through one, too.
        if let Err(error) = FdSet::remove_all(monitor) {
            left.push(format!("sets of file descriptors: {error}"));
        }
        left
    }

    /// Runs a job that saves or loads state but not the guest's memory.
    fn job_without_memory(
        &mut self,
        monitor: &mut Monitor,
        command: &str,
        arguments: Value,
    ) -> Result<(), MachineError> {
        Capabilities::JOB.set(monitor)?;
        self.current = Capabilities::JOB;
        let done = monitor.job(command, arguments);
        self.restore_capabilities(monitor);
        done
    }

    /// In the pause, after a job that began at `begin`: what another client saved since must have the memory. An error
    /// concerns the owner's snapshot, not this driver's state.
    fn repair_owner_snapshots(&self, monitor: &mut Monitor, begin: SystemTime, stream: &[u8]) {
        if !self.has_other_clients() || self.current.excludes_memory {
            return;
        }
        if let Err(error) = owner_snapshot::save_again(monitor, begin, stream.len() as u64) {
            tracing::error!(%error, "a snapshot of another program lacks the guest's memory");
        }
    }

    /// Restores the owner's capabilities. A failure does not make the saved state invalid: it is tried again.
    fn restore_capabilities(&mut self, monitor: &mut Monitor) {
        let owners = self.owners;
        if self.current == owners {
            return;
        }
        let restored = owners.set(monitor).or_else(|error| {
            // QEMU refuses it during a migration. One that another program began in the meantime lacks the memory.
            if owners.excludes_memory {
                return Err(error);
            }
            migration::cancel(monitor)?;
            owners.set(monitor)
        });
        match restored {
            Ok(()) => self.current = owners,
            Err(error) => tracing::warn!(%error, "x-ignore-shared stays on in QEMU for now"),
        }
    }

    /// Whether another program sends commands to QEMU, too.
    pub(super) fn has_other_clients(&self) -> bool {
        self.clients == Clients::Several
    }

    /// States that QEMU saved and that were read.
    pub(super) fn untidy(&self) -> usize {
        self.done.len()
    }

    /// Frees states that QEMU saved and that were read. This only frees memory, and is meant for the time after the
    /// pause.
    pub(super) fn tidy(&mut self, monitor: &mut Monitor) -> Result<(), MachineError> {
        self.restore_capabilities(monitor);
        while let Some(tag) = self.done.last() {
            monitor.job("snapshot-delete", json!({ "tag": tag, "devices": [self.save_node] }))?;
            self.done.pop();
        }
        Ok(())
    }

    /// Loads a state into the paused machine, and restores `disks` to their snapshots named `tag`.
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
                message: "it is not a state that QEMU saved".into(),
            });
        }
        let image = vmstate::with_snapshot(tag, stream)
            .ok_or_else(|| MachineError::Driver { doing: doing(), message: "it is too long".into() })?;
        let io = |source| MachineError::Io { doing: doing(), source };
        self.load.set_len(0).map_err(io)?;
        self.load.write_all_at(&image, 0).map_err(io)?;
        monitor.execute("blockdev-add", &node(&self.load_node, &self.load_set))?;
        let mut devices = vec![self.load_node.clone()];
        devices.extend_from_slice(disks);
        let arguments = json!({ "tag": tag, "vmstate": self.load_node, "devices": devices });
        let begin = SystemTime::now();
        let loaded = self.job_without_memory(monitor, "snapshot-load", arguments);
        let removed = monitor.execute("blockdev-del", &json!({ "node-name": self.load_node }));
        loaded?;
        removed?;
        self.repair_owner_snapshots(monitor, begin, stream);
        Ok(())
    }
}

/// Whether QEMU's list of capabilities has this one on.
fn is_on(capabilities: &Value, name: &str) -> bool {
    let mut all = capabilities.as_array().into_iter().flatten();
    all.any(|entry| text(entry, "capability") == Some(name) && entry.get("state") == Some(&Value::Bool(true)))
}

fn node(name: &str, set: &FdSet) -> Value {
    json!({
        "driver": "qcow2", "node-name": name, "cache": { "no-flush": true },
        "file": { "driver": "file", "filename": set.block_path(), "cache": { "no-flush": true } },
    })
}
