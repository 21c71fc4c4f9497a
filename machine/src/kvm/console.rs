//! The host's side of the machine's console.

pub(super) mod output;
pub(super) mod pending;

use pending::Pending;

use super::input_gate::InputGate;

/// Sends input to a machine's console. Clones send to the same one; it can be used from any thread.
#[derive(Clone)]
pub struct ConsoleInput {
    pending: Pending,
    input_gate: InputGate,
}

impl ConsoleInput {
    pub(super) fn new(pending: Pending, input_gate: InputGate) -> Self {
        Self { pending, input_gate }
    }

    /// Sends input, and returns how many of the bytes were accepted: the rest must be sent again later.
    ///
    /// The port holds 64 bytes. Further input waits here, up to 64 KiB, until the guest has read the port's bytes, or
    /// until the machine is resumed. A checkpoint includes the bytes in the port, but not those that wait here, which a
    /// rollback does not change.
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

    /// Drops the input that waits.
    pub fn clear(&self) {
        self.pending.clear();
    }
}
