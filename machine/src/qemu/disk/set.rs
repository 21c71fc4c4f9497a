use std::collections::BTreeMap;
use std::fs::File;

use retrovisor_guest::{
    BlockContent, DiskBlocks, DiskChanges, DiskShape, DiskState, MachineError, MachineState,
};
use serde_json::json;

use super::attached::{AttachedDisk, snapshots};
use super::writer::BlockWriter;
use crate::qemu::monitor::Monitor;

/// The prefix of the names of all disk snapshots that this driver makes.
pub(in crate::qemu) const TAG_PREFIX: &str = "rv-";

/// All writable disks of the running machine, which are rolled back together.
pub(in crate::qemu) struct DiskSet {
    disks: Vec<AttachedDisk>,
    /// Of those of `disks` whose blocks can be read.
    shapes: Vec<DiskShape>,
    /// Blocks that were written and not checked yet.
    blocks: BlockWriter,
}

impl DiskSet {
    pub(in crate::qemu) fn new(disks: Vec<AttachedDisk>) -> Self {
        let shapes = disks.iter().filter_map(|disk| disk.shape.clone()).collect();
        Self { disks, shapes, blocks: BlockWriter::default() }
    }

    pub(in crate::qemu) fn shapes(&self) -> &[DiskShape] {
        &self.shapes
    }

    /// Whether the blocks of every writable disk can be read.
    pub(in crate::qemu) fn have_blocks(&self) -> bool {
        self.shapes.len() == self.disks.len()
    }

    /// The names of the disks in checkpoints.
    pub(in crate::qemu) fn names(&self) -> Vec<String> {
        self.disks.iter().map(|disk| disk.name.clone()).collect()
    }

    /// QEMU's names of their block nodes.
    pub(in crate::qemu) fn nodes(&self) -> Vec<String> {
        self.disks.iter().map(|disk| disk.node.clone()).collect()
    }

    /// Refuses a state with other disks than those of the machine.
    pub(in crate::qemu) fn check_names(&self, state: &MachineState) -> Result<(), MachineError> {
        let has = |disk: &AttachedDisk| state.disks.iter().any(|own| disk.is_named(&own.disk));
        if state.disks.len() == self.disks.len() && self.disks.iter().all(has) {
            return Ok(());
        }
        let expected: Vec<_> = state.disks.iter().map(|disk| disk.disk.clone()).collect();
        Err(mismatch(expected.join(", "), self.names().join(", ")))
    }

    /// The snapshot to which the disks are restored, after checking that every disk of the machine has it; none when
    /// their contents are not to change.
    pub(in crate::qemu) fn target(
        &self,
        monitor: &mut Monitor,
        state: &MachineState,
    ) -> Result<Option<String>, MachineError> {
        self.check_names(state)?;
        let Some(tag) = state.disks.first().map(|disk| disk.reference.clone()) else { return Ok(None) };
        if let Some(other) = state.disks.iter().find(|disk| disk.reference != tag) {
            return Err(mismatch(
                format!("the snapshots {tag} and {}", other.reference),
                "one for all".into(),
            ));
        }
        if tag.is_empty() {
            return Ok(None);
        }
        let nodes = monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
        match self.disks.iter().find(|disk| !snapshots(&nodes, &disk.node).any(|own| own == tag)) {
            Some(disk) => Err(mismatch(
                format!("{} with snapshot {tag}", disk.name),
                "a disk without that snapshot".into(),
            )),
            None => Ok(Some(tag)),
        }
    }

    /// Makes the disk contents of a state durable. QEMU does not wait for the host's disk during the pause: this does,
    /// from outside, while the guest runs.
    pub(in crate::qemu) fn sync(&self) -> Result<(), MachineError> {
        for path in self.disks.iter().filter_map(|disk| disk.path.as_ref()) {
            let synced = File::open(path).and_then(|file| file.sync_data());
            synced.map_err(|source| MachineError::Io {
                doing: format!("making the disk {} durable", path.display()),
                source,
            })?;
        }
        Ok(())
    }

    /// Deletes snapshots; those of missing disks are ignored.
    pub(in crate::qemu) fn release(
        &self,
        monitor: &mut Monitor,
        states: &[DiskState],
    ) -> Result<(), MachineError> {
        let mut disks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for state in states.iter().filter(|state| !state.reference.is_empty()) {
            if let Some(disk) = self.disks.iter().find(|disk| disk.is_named(&state.disk)) {
                disks.entry(&state.reference).or_default().push(&disk.node);
            }
        }
        for (tag, devices) in disks {
            monitor.job("snapshot-delete", json!({ "tag": tag, "devices": devices }))?;
        }
        Ok(())
    }

    pub(in crate::qemu) fn changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let since = since.map(|state| state.reference.as_str());
        Ok(Box::new(self.find(&at.disk)?.changes(&at.reference, since)?))
    }

    pub(in crate::qemu) fn blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        Ok(Box::new(self.find(&at.disk)?.blocks(&at.reference)?))
    }

    /// The snapshots that this driver made, of all disks.
    pub(in crate::qemu) fn retained(&self, monitor: &mut Monitor) -> Result<Vec<DiskState>, MachineError> {
        let nodes = monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
        let mut retained = Vec::new();
        for disk in &self.disks {
            let own = snapshots(&nodes, &disk.node).filter(|tag| tag.starts_with(TAG_PREFIX));
            retained.extend(own.map(|tag| DiskState { disk: disk.name.clone(), reference: tag.to_owned() }));
        }
        Ok(retained)
    }

    /// Writes blocks; they must be [checked](Self::check) afterwards.
    pub(in crate::qemu) fn write(
        &mut self,
        monitor: &mut Monitor,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        let Some(found) = self.disks.iter().find(|own| own.is_named(disk)) else {
            return self.find(disk).map(drop);
        };
        self.blocks.write(monitor, found, first, contents)
    }

    /// Reads back what was written.
    pub(in crate::qemu) fn check(&mut self, monitor: &mut Monitor) -> Result<(), MachineError> {
        self.blocks.check(monitor, &self.disks)
    }

    /// The blocks that were written need no check any more.
    pub(in crate::qemu) fn forget_written(&mut self) {
        self.blocks.forget();
    }

    fn find(&self, name: &str) -> Result<&AttachedDisk, MachineError> {
        let found = self.disks.iter().find(|disk| disk.is_named(name));
        found.ok_or_else(|| mismatch(name.to_owned(), self.names().join(", ")))
    }
}

fn mismatch(expected: String, found: String) -> MachineError {
    MachineError::Mismatch { what: "the disks".into(), expected, found }
}
