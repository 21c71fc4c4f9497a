use crate::{BlockContent, DiskBlocks, DiskChanges, DiskShape, DiskState, MachineError, MachineState};

/// A machine's disks, block by block.
///
/// As long as the driver retains the disks' contents of a state ([`DiskIo::retains_disks`]),
/// [`apply_state`](crate::StateIo::apply_state) restores them. After that their blocks are written, like pages:
/// `write_blocks`, then `apply_state` with [`DiskState::unchanged`].
pub trait DiskIo {
    /// The writable disks whose contents can be read and written block by block: constant for the lifetime of the
    /// machine. If there are none, disks are restored by [`apply_state`](crate::StateIo::apply_state) only.
    fn disks(&self) -> &[DiskShape] {
        &[]
    }

    /// The blocks of a disk that may differ between two captured states; without `since`, between `at` and the base
    /// image. Does not affect the guest, because captured blocks do not change. `since` must be retained, too
    /// ([`DiskIo::retained_disks`]).
    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let _ = since;
        Err(no_blocks(&at.disk))
    }

    /// The blocks of a disk in a captured state, to be read one by one, whether or not they changed.
    fn disk_blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        Err(no_blocks(&at.disk))
    }

    /// The snapshots of disks of all states that were captured and not released, also by earlier processes; for each
    /// disk in the order in which they were captured.
    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        Ok(Vec::new())
    }

    /// Whether the disks' contents of a state are retained, so that [`apply_state`](crate::StateIo::apply_state) can
    /// restore them. `true` for a state without disks.
    fn retains_disks(&mut self, state: &MachineState) -> Result<bool, MachineError> {
        if state.disks.is_empty() {
            return Ok(true);
        }
        let retained = self.retained_disks()?;
        Ok(state.disks.iter().all(|disk| retained.contains(disk)))
    }

    /// Writes consecutive blocks, from `first` on. Needs the machine paused. The writes take effect, and are checked,
    /// in [`apply_state`](crate::StateIo::apply_state) with [`DiskState::unchanged`].
    fn write_blocks(
        &mut self,
        disk: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        let _ = (first, contents);
        Err(no_blocks(disk))
    }
}

fn no_blocks(disk: &str) -> MachineError {
    MachineError::Unsupported {
        what: format!("reading and writing the blocks of disk {disk}"),
        help: "Its contents go back only as long as the driver retains them".into(),
    }
}
