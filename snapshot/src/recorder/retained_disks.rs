use std::collections::{BTreeMap, VecDeque};

use retrovisor_guest::{DiskState, Machine, MachineState};

/// What is known of the disk contents that the driver retains.
#[derive(Default)]
pub(super) struct RetainedDisks {
    /// The contents captured last, by disk: the next changes are relative to them.
    pub(super) seen: BTreeMap<String, DiskState>,
    /// Whether `seen` and `kept` were read from the driver and the store.
    pub(super) known: bool,
    /// Contents that the driver retains and that are stored or being stored; oldest first.
    pub(super) kept: VecDeque<Vec<DiskState>>,
}

impl RetainedDisks {
    /// The driver retains these contents and no others.
    pub(super) fn at(disks: Vec<DiskState>) -> Self {
        let seen = disks.iter().map(|state| (state.disk.clone(), state.clone())).collect();
        let kept = if disks.is_empty() { VecDeque::new() } else { VecDeque::from([disks]) };
        Self { seen, known: true, kept }
    }

    /// The machine moved, or captures failed: all of it must be read again.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Releases what the driver retains for a state that was not stored.
pub(super) fn release(machine: &mut dyn Machine, state: &MachineState) {
    if let Err(error) = machine.release_state(state) {
        tracing::warn!(%error, "what the driver retains for a checkpoint that failed could not be released");
    }
}
