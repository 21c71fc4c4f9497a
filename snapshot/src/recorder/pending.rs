use std::sync::Arc;

use crossbeam_channel::Receiver;
use retrovisor_guest::MachineError;

use super::report::{CheckpointReport, CheckpointTiming};
use super::task::Outcome;
use crate::error::{Error, Result};
use crate::store::Store;

/// A checkpoint that is captured and is being made durable while the guest runs. Dropping this does not stop that.
pub struct PendingCheckpoint {
    pub(super) store: Arc<Store>,
    pub(super) timing: CheckpointTiming,
    pub(super) outcome: Receiver<Outcome>,
    /// Whether the guest could be resumed.
    pub(super) resumed: Result<(), MachineError>,
}

impl PendingCheckpoint {
    /// The times of the capture: until the guest was resumed.
    #[must_use]
    pub fn timing(&self) -> &CheckpointTiming {
        &self.timing
    }

    /// Whether the outcome is known, so that [`PendingCheckpoint::wait`] returns at once.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        !self.outcome.is_empty()
    }

    /// Waits until the checkpoint is durable. If it fails, its frames are in the recorder's next capture.
    pub fn wait(self) -> Result<CheckpointReport> {
        let (committed, timing) = wait_for(&self.outcome)?;
        let record = self.store.catalogue().checkpoint(committed.position.checkpoint)?;
        self.resumed.map_err(Error::Resume)?;
        Ok(CheckpointReport { record, timing })
    }
}

/// Waits for the outcome of a capture.
pub(super) fn wait_for(outcome: &Receiver<Outcome>) -> Outcome {
    outcome.recv().unwrap_or_else(|_| Err(Error::NotStored { cause: "the storing thread ended".to_owned() }))
}
