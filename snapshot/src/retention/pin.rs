use serde_json::json;

use crate::catalogue::OperationKind;
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

impl Store {
    /// Pins a checkpoint, so that no policy removes it, or unpins it. Recorded as an operation of its machine.
    /// Returns whether that changed anything.
    pub fn pin(&self, checkpoint: CheckpointId, pinned: bool) -> Result<bool> {
        let catalogue = self.catalogue();
        let record = catalogue.checkpoint(checkpoint)?;
        let changed = catalogue.set_pinned(checkpoint, pinned)?;
        if changed {
            let detail = json!({ "checkpoint": record.name, "pinned": pinned });
            catalogue.note_operation(record.machine, OperationKind::Pin, &detail)?;
        }
        Ok(changed)
    }
}
