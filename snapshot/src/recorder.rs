//! The engine that takes checkpoints of a machine and brings it back.

mod report;

use std::sync::Arc;

use retrovisor_guest::Machine;

pub use report::{
    CheckpointReport, CheckpointRequest, CheckpointTiming, RollbackPlan, RollbackReport, RollbackRequest,
    RollbackTiming,
};

use crate::catalogue::Position;
use crate::error::Result;
use crate::id::{CheckpointId, MachineId};
use crate::store::Store;

/// Takes checkpoints of one machine and brings it back. Blocks the calling thread; one a machine.
pub struct Recorder {
    store: Arc<Store>,
    machine: MachineId,
}

#[expect(
    clippy::todo,
    unused_variables,
    clippy::needless_pass_by_value,
    reason = "the bodies follow in the next commits"
)]
impl Recorder {
    /// A recorder for a machine of the store. It knows nothing of the machine's memory yet: its first checkpoint
    /// looks at every frame.
    pub fn new(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        todo!()
    }

    /// Where the machine stands.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        todo!()
    }

    /// Takes a checkpoint. The guest stands still only while its dirty frames are copied and its state is captured,
    /// and never because of a failure here: what could not be stored is in the next checkpoint.
    /// A machine that was paused stays paused.
    pub fn checkpoint(
        &mut self,
        machine: &mut dyn Machine,
        request: &CheckpointRequest,
    ) -> Result<CheckpointReport> {
        todo!()
    }

    /// What [`Recorder::rollback`] would do.
    pub fn plan_rollback(&self, target: CheckpointId) -> Result<RollbackPlan> {
        todo!()
    }

    /// Checkpoints the present, then brings the machine back to `target` in place, on a new timeline.
    /// The guest runs on if it ran before. A failure puts the present back and says so.
    pub fn rollback(
        &mut self,
        machine: &mut dyn Machine,
        target: CheckpointId,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        todo!()
    }

    /// Undoes the last rollback, undo or redo that is not undone: back to where the machine stood before it.
    pub fn undo(&mut self, machine: &mut dyn Machine, request: &RollbackRequest) -> Result<RollbackReport> {
        todo!()
    }

    /// Undoes the last undo.
    pub fn redo(&mut self, machine: &mut dyn Machine, request: &RollbackRequest) -> Result<RollbackReport> {
        todo!()
    }

    /// Puts a checkpoint into a machine of which nothing is known (a new process, a second machine): compares every
    /// frame. Nothing of the machine's present is kept. It stays paused.
    pub fn restore(
        &mut self,
        machine: &mut dyn Machine,
        target: CheckpointId,
        request: &RollbackRequest,
    ) -> Result<RollbackReport> {
        todo!()
    }
}
