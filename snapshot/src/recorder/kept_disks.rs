use std::collections::{BTreeMap, VecDeque};

use retrovisor_guest::{DiskState, Machine, MachineState};

/// What is known of the disk contents that the driver keeps.
#[derive(Default)]
pub(super) struct KeptDisks {
    /// The contents captured last, by disk: what the next changes are counted from.
    pub(super) seen: BTreeMap<String, DiskState>,
    /// Whether `seen` and `kept` were read from the driver and the store.
    pub(super) known: bool,
    /// Contents that the driver keeps and the store has, or will have once what is on its way is there; oldest first.
    pub(super) kept: VecDeque<Vec<DiskState>>,
}

impl KeptDisks {
    /// The driver keeps these contents and no others.
    pub(super) fn at(disks: Vec<DiskState>) -> Self {
        let seen = disks.iter().map(|state| (state.disk.clone(), state.clone())).collect();
        let kept = if disks.is_empty() { VecDeque::new() } else { VecDeque::from([disks]) };
        Self { seen, known: true, kept }
    }

    /// The machine moved, or captures failed: all of it must be looked at again.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Lets go of what the driver set aside for a state that was not stored.
pub(super) fn release(machine: &mut dyn Machine, state: &MachineState) {
    if let Err(error) = machine.release_state(state) {
        tracing::warn!(%error, "what the driver set aside for a checkpoint that failed could not be released");
    }
}
