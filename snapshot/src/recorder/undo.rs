use retrovisor_guest::Machine;

use super::engine::Recorder;
use super::history::History;
use super::journey::Journey;
use super::report::{RollbackReport, RollbackRequest};
use crate::catalogue::{OperationKind, OperationRecord};
use crate::error::{Error, Result};

impl Recorder {
    /// Undoes the last rollback, undo or redo that is not undone: back to where the machine stood before it, in the
    /// timeline in which it stood. Again: one further back. The present is checkpointed first, as in a rollback.
    pub fn undo(&mut self, machine: &mut dyn Machine, request: &RollbackRequest) -> Result<RollbackReport> {
        self.retrace(machine, OperationKind::Undo, "undo", request, |history| history.undo.last().copied())
    }

    /// Undoes the last undo that is not redone: back to where the machine stood before that.
    pub fn redo(&mut self, machine: &mut dyn Machine, request: &RollbackRequest) -> Result<RollbackReport> {
        self.retrace(machine, OperationKind::Redo, "redo", request, |history| history.redo.last().copied())
    }

    fn retrace(
        &mut self,
        machine: &mut dyn Machine,
        kind: OperationKind,
        what: &'static str,
        request: &RollbackRequest,
        pick: impl for<'a> FnOnce(&History<'a>) -> Option<&'a OperationRecord>,
    ) -> Result<RollbackReport> {
        let operations = self.store.catalogue().operations(self.machine)?;
        let (undoes, before) = pick(&History::of(&operations))
            .and_then(|operation| Some((operation.id, operation.before?)))
            .ok_or(Error::Nothing { what })?;
        // Where the timeline went on meanwhile, nothing may be put on top of that: a new one begins.
        let timeline = self.store.catalogue().is_tip(before)?.then_some(before.timeline);
        let journey = Journey { target: before.checkpoint, kind, undoes: Some(undoes), timeline, request };
        self.travel(machine, &journey)
    }
}
