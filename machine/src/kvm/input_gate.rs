use std::sync::{Arc, Weak};

use super::bus::Bus;
use super::gate::Gate;

/// Passes input from outside to devices only while the machine runs, so that nothing changes during a pause.
#[derive(Clone)]
pub(super) struct InputGate {
    gate: Arc<Gate>,
    /// Weak: a gate does not keep the machine's devices alive.
    bus: Weak<Bus>,
}

impl InputGate {
    pub(super) fn new(gate: Arc<Gate>, bus: &Arc<Bus>) -> Self {
        Self { gate, bus: Arc::downgrade(bus) }
    }

    /// Makes every device accept the input that waits for it, if the machine runs. Must be called again after a resume.
    pub(super) fn notify(&self) {
        if let (Some(_inside), Some(bus)) = (self.gate.try_pass(), self.bus.upgrade()) {
            bus.take_input();
        }
    }

    /// Waits until the machine runs, then does some work on a device. The work must be short, since a pause waits for
    /// it. `None` when the machine has ended.
    pub(super) fn pass<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let _inside = self.gate.pass()?;
        Some(work())
    }
}
