//! The machine's console, seen from this side of the serial port.

pub(super) mod output;
pub(super) mod pending;

use pending::Pending;

use super::input_gate::InputGate;

/// Types into a machine's console. Clones type into the same one; it may be used while the machine is elsewhere.
#[derive(Clone)]
pub struct ConsoleInput {
    pending: Pending,
    input_gate: InputGate,
}

impl ConsoleInput {
    pub(super) fn new(pending: Pending, input_gate: InputGate) -> Self {
        Self { pending, input_gate }
    }

    /// Types, and returns how many of the bytes were taken: the rest must be typed again, later.
    ///
    /// The port holds 64 bytes. What does not fit waits here, up to 64 KiB, until the guest has read them, or until the
    /// machine is resumed. It is no part of a checkpoint and a rollback leaves it waiting; what the port holds is.
    #[must_use = "what was not taken must be typed again"]
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let taken = self.pending.push(bytes);
        self.input_gate.notify();
        taken
    }

    /// Bytes that the guest's port could not take yet.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Forgets what waits.
    pub fn clear(&self) {
        self.pending.clear();
    }
}
