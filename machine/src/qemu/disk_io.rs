//! The contents of the disks.

use retrovisor_guest::{BlockContent, DiskBlocks, DiskChanges, DiskIo, DiskShape, DiskState, MachineError};

use super::QemuMachine;

impl DiskIo for QemuMachine {
    fn disks(&self) -> &[DiskShape] {
        self.disks.shapes()
    }

    /// Must be called while no state is made or released; the result can be read at any time.
    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        self.disks.changes(at, since)
    }

    /// Must be called while no state is made or released; the result can be read at any time.
    fn disk_blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        self.disks.blocks(at)
    }

    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        self.disks.retained(&mut self.monitor)
    }

    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        self.needs_pause("writing a disk")?;
        self.disks.write(&mut self.monitor, disk, first, contents)
    }
}
