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
        if let (Some(_inside), Some(bus)) = (self.gate.try_pass(), self.bus.upgrade()) {
            bus.take_input();
        }
    }

    /// Waits until the machine runs, then does some work on a device, which must be short: a pause waits for it. `None`
    /// when the machine is over.
    pub(super) fn pass<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let _inside = self.gate.pass()?;
        Some(work())
    }
}
