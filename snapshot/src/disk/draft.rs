use retrovisor_guest::{DiskChanges, DiskShape, DiskState, Machine, MachineState};

use super::stand::DiskStands;
use crate::error::Result;

/// A disk's contents at a captured instant, on their way into the store.
pub(crate) struct DiskDraft {
    pub(crate) shape: DiskShape,
    pub(crate) at: DiskState,
    /// What the changes are counted from; none for what the disk began as.
    pub(crate) since: Option<DiskState>,
    pub(crate) changes: Box<dyn DiskChanges>,
}

impl DiskDraft {
    /// The disks of a state that was captured just now. `since` says for each what its changes are to be counted from.
    pub(crate) fn of(
        machine: &dyn Machine,
        state: &MachineState,
        since: impl Fn(&DiskShape) -> Option<DiskState>,
    ) -> Result<Vec<Self>> {
        let mut drafts = Vec::new();
        for shape in machine.disks() {
            let Some(at) = state.disks.iter().find(|disk| disk.disk == shape.name) else { continue };
            let since = since(shape);
            let changes = machine.disk_changes(at, since.as_ref())?;
            drafts.push(Self { shape: shape.clone(), at: at.clone(), since, changes });
        }
        Ok(drafts)
    }
}

/// What the changes of a disk can be counted from, where the machine stands: nothing, if it is another disk now.
pub(crate) fn since(stands: &DiskStands, shape: &DiskShape) -> Option<DiskState> {
    let stand = stands.get(&shape.name).filter(|stand| stand.record.differs(shape).is_none())?;
    stand.seen.as_ref().map(|(state, _)| state.clone())
}
