use retrovisor_guest::{DiskBlocks, DiskChanges, DiskShape, DiskState, Machine, MachineState};

use super::baseline::DiskBaselines;
use crate::error::Result;

/// The changes of a disk up to a captured instant, to be stored.
pub(crate) struct CapturedDisk {
    pub(crate) shape: DiskShape,
    pub(crate) at: DiskState,
    /// The state that the changes are relative to; none for the base image.
    pub(crate) since: Option<DiskState>,
    pub(crate) changes: Box<dyn DiskChanges>,
    /// To compare blocks for the audit; none if it is off.
    pub(crate) blocks: Option<Box<dyn DiskBlocks>>,
}

impl CapturedDisk {
    /// The disks of a newly captured state. `since` has the state to which the changes of each are relative.
    pub(crate) fn of(
        machine: &dyn Machine,
        state: &MachineState,
        since: impl Fn(&DiskShape) -> Option<DiskState>,
    ) -> Result<Vec<Self>> {
        let mut disks = Vec::new();
        for shape in machine.disks() {
            let Some(at) = state.disks.iter().find(|disk| disk.disk == shape.name) else { continue };
            let since = since(shape);
            let changes = machine.disk_changes(at, since.as_ref())?;
            disks.push(Self { shape: shape.clone(), at: at.clone(), since, changes, blocks: None });
        }
        Ok(disks)
    }

    /// Opens the disk for the audit. A failure is no error of the checkpoint.
    pub(crate) fn open_blocks(&mut self, machine: &dyn Machine) {
        match machine.disk_blocks(&self.at) {
            Ok(blocks) => self.blocks = Some(blocks),
            Err(error) => tracing::warn!(%error, disk = self.at.disk, "a disk cannot be audited"),
        }
    }
}

/// The state to which changes of a disk can be relative: none, if the baseline has another disk of this name.
pub(crate) fn since(baselines: &DiskBaselines, shape: &DiskShape) -> Option<DiskState> {
    let baseline = baselines.get(&shape.name).filter(|baseline| baseline.record.differs(shape).is_none())?;
    baseline.seen.as_ref().map(|(state, _)| state.clone())
}
