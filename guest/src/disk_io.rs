use crate::{BlockContent, DiskChanges, DiskShape, DiskState, MachineError, MachineState};

/// A machine's disks, block by block.
///
/// Disks go back with [`apply_state`](crate::StateIo::apply_state) as long as the driver retains their contents
/// ([`DiskIo::retains_disks`]); from then on their blocks are written, like pages: `write_blocks`, then `apply_state` with
/// [`DiskState::unchanged`].
pub trait DiskIo {
    /// The writable disks whose contents can be read and written block by block: constant while the machine lives.
    /// A machine without any has disks that go back by [`apply_state`](crate::StateIo::apply_state) alone.
    fn disks(&self) -> &[DiskShape] {
        &[]
    }

    /// The blocks of a disk that may differ between two captured states; without `since`, between `at` and the base
    /// image. Costs the guest nothing: what is read does not change any more.
    /// `since` must be retained, too ([`DiskIo::retained_disks`]).
    fn disk_changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let _ = since;
        Err(no_blocks(&at.disk))
    }

    /// The snapshots of disks of all states that were captured and not released, also by earlier processes; for each
    /// disk in the order in which they were captured.
    fn retained_disks(&mut self) -> Result<Vec<DiskState>, MachineError> {
        Ok(Vec::new())
    }

    /// Whether the contents that a state's disks are to have are retained, so that
    /// [`apply_state`](crate::StateIo::apply_state) can put them back. `true` for a state without disks.
    fn retains_disks(&mut self, state: &MachineState) -> Result<bool, MachineError> {
        if state.disks.is_empty() {
            return Ok(true);
        }
        let retained = self.retained_disks()?;
        Ok(state.disks.iter().all(|disk| retained.contains(disk)))
    }

    /// Writes blocks in a row, from `first` on. Needs the machine paused; is in effect, and checked, once
    /// [`apply_state`](crate::StateIo::apply_state) was called with [`DiskState::unchanged`].
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
