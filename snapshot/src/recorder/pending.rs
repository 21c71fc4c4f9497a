use std::sync::Arc;

use crossbeam_channel::Receiver;
use retrovisor_guest::MachineError;

use super::report::{CheckpointReport, CheckpointTiming};
use crate::catalogue::Committed;
use crate::error::{Error, Result};
use crate::store::Store;

/// A checkpoint that is captured: the guest runs on, and it is being made durable. Dropping this does not stop that.
pub struct Pending {
    pub(super) store: Arc<Store>,
    pub(super) timing: CheckpointTiming,
    pub(super) outcome: Receiver<Result<Stored>>,
    /// Whether the guest could be set running again.
    pub(super) resumed: Result<(), MachineError>,
}

/// A checkpoint that is safe on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) committed: Committed,
    pub(super) timing: CheckpointTiming,
}

impl Pending {
    /// What the capture took so far: all that happens until the guest runs on.
    #[must_use]
    pub fn timing(&self) -> &CheckpointTiming {
        &self.timing
    }

    /// Whether it is known what became of it, so that [`Pending::wait`] answers at once.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        !self.outcome.is_empty()
    }

    /// Waits until the checkpoint is durable. When it is not, its frames are in the recorder's next capture.
    pub fn wait(self) -> Result<CheckpointReport> {
        let stored = wait_for(&self.outcome)?;
        let record = self.store.catalogue().checkpoint(stored.committed.position.checkpoint)?;
        self.resumed.map_err(Error::Resume)?;
        Ok(CheckpointReport { record, timing: stored.timing })
    }
}

/// Waits for what became of a job.
pub(super) fn wait_for(outcome: &Receiver<Result<Stored>>) -> Result<Stored> {
    outcome.recv().unwrap_or_else(|_| Err(Error::NotStored { cause: "the storing thread ended".to_owned() }))
}
