use crate::catalogue::{OperationKind, OperationRecord, OperationStatus};

/// The operations that can be undone and redone, newest last: read from the log of operations, so that they survive a
/// restart.
#[derive(Debug, Default, PartialEq)]
pub(super) struct History<'a> {
    pub(super) undo: Vec<&'a OperationRecord>,
    pub(super) redo: Vec<&'a OperationRecord>,
}

impl<'a> History<'a> {
    /// Reads the log, oldest first.
    pub(super) fn of(operations: &'a [OperationRecord]) -> Self {
        let mut history = Self::default();
        let moved = operations.iter().filter(|operation| {
            operation.kind.moves() && operation.status == OperationStatus::Done && operation.before.is_some()
        });
        for operation in moved {
            match operation.kind {
                OperationKind::Undo => {
                    history.undo.pop();
                    history.redo.push(operation);
                }
                OperationKind::Redo => {
                    history.redo.pop();
                    history.undo.push(operation);
                }
                // Only those that move the machine come here.
                _ => {
                    history.undo.push(operation);
                    history.redo.clear();
                }
            }
        }
        history
    }
}
