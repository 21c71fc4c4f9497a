use retrovisor_guest::Machine;

use super::engine::Recorder;
use super::history::History;
use super::report::{RollbackReport, RollbackRequest};
use crate::catalogue::{OperationRecord, Rollback, RollbackKind};
use crate::error::{Error, Result};

impl Recorder {
    /// Undoes the last rollback, undo or redo that is not undone: moves the machine to the state before it, in the
    /// timeline of that state. Called again, it goes one further back. The current state is checkpointed first, as in
    /// a rollback.
    pub fn undo(&mut self, machine: &mut dyn Machine, request: &RollbackRequest) -> Result<RollbackReport> {
        self.retrace(machine, RollbackKind::Undo, "undo", request, |history| history.undo.last().copied())
    }

    /// Undoes the last undo that is not redone: moves the machine to the state before that.
    pub fn redo(&mut self, machine: &mut dyn Machine, request: &RollbackRequest) -> Result<RollbackReport> {
        self.retrace(machine, RollbackKind::Redo, "redo", request, |history| history.redo.last().copied())
    }

    fn retrace(
        &mut self,
        machine: &mut dyn Machine,
        kind: RollbackKind,
        what: &'static str,
        request: &RollbackRequest,
        pick: impl for<'a> FnOnce(&History<'a>) -> Option<&'a OperationRecord>,
    ) -> Result<RollbackReport> {
        let operations = self.store.catalogue().operations(self.machine)?;
        let (undoes, before) = pick(&History::of(&operations))
            .and_then(|operation| Some((operation.id, operation.before?)))
            .ok_or(Error::Nothing { what })?;
        // A timeline that was continued meanwhile is not continued: a new one begins.
        let timeline = self.store.catalogue().is_tip(before)?.then_some(before.timeline);
        let rollback = Rollback {
            undoes: Some(undoes),
            timeline,
            ..self.new_rollback(kind, before.checkpoint, request)?
        };
        self.move_to(machine, rollback, request)
    }
}
