use std::sync::{Arc, Weak};

use super::bus::Bus;
use super::gate::Gate;

/// Where input from outside comes in: only while the machine runs, so that nothing moves while it stands still.
#[derive(Clone)]
pub(super) struct Door {
    gate: Arc<Gate>,
    /// Whoever holds a door does not keep the machine's devices.
    bus: Weak<Bus>,
}

impl Door {
    pub(super) fn new(gate: Arc<Gate>, bus: &Arc<Bus>) -> Self {
        Self { gate, bus: Arc::downgrade(bus) }
    }

    /// Lets every device take the input that waits for it, if the machine runs. Who resumes it knocks again.
    pub(super) fn knock(&self) {
        if self.gate.try_enter() {
            if let Some(bus) = self.bus.upgrade() {
                bus.take_input();
            }
            self.gate.leave();
        }
    }
}
