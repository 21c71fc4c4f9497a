//! A second machine that goes on from a checkpoint of another one.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{ClockPolicy, DiskBase, Machine, MachineError, PageSet};
use serde::Serialize;

use super::engine::Recorder;
use super::kept_disks::KeptDisks;
use super::stand::Stand;
use crate::catalogue::{CheckpointRecord, MachineRecord};
use crate::clock::since_us;
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId};
use crate::store::Store;

/// What a branch would be made of.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchPlan {
    /// The machine that it branches off from.
    pub machine: MachineRecord,
    /// Its checkpoint.
    pub origin: CheckpointRecord,
    /// Pages of the memory that hold data. The others are zero, and take no room.
    pub data_pages: u64,
    /// The disks at the checkpoint, as far as they are in the store.
    pub disks: Vec<BranchDisk>,
    /// Disks of the checkpoint whose blocks are not in the store: a branch cannot have them.
    pub disks_missing: Vec<String>,
}

/// A disk that a branch would have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BranchDisk {
    /// Its name in the machine: `d0`.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The image that it lies over.
    pub base: Option<DiskBase>,
    /// Blocks that the guest has written, which are copied.
    pub written_blocks: u64,
}

/// How a branch is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BranchRequest {
    /// What the service keeps to find the new machine again; the store does not read it.
    pub runtime: String,
    /// Why: kept with the operation. JSON object, or null.
    pub detail: serde_json::Value,
}

/// A machine that holds what another one held at a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchReport {
    /// The checkpoint.
    pub origin: CheckpointRecord,
    /// Frames written.
    pub pages_written: u64,
    /// Blocks of disks written.
    pub blocks_written: u64,
    /// Where the time went.
    pub timing: BranchTiming,
}

/// Where the time of a branch went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BranchTiming {
    /// Reading the checkpoint's map and state.
    pub read_us: u64,
    /// Reading the checkpoint's pages and writing them.
    pub fill_us: u64,
    /// Writing blocks of disks.
    pub disk_us: u64,
    /// Putting vCPUs, devices and disks where they were.
    pub apply_us: u64,
}

/// How far a branch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BranchProgress {
    /// Frames done.
    pub done: u64,
    /// All of them.
    pub total: u64,
}

impl Store {
    /// What a branch of a checkpoint would be made of; fails where there can be none.
    pub fn plan_branch(&self, origin: CheckpointId) -> Result<BranchPlan> {
        let catalogue = self.catalogue();
        let record =
            catalogue.checkpoint(origin).map_err(|error| catalogue.explain_missing(origin, error))?;
        catalogue.must_be_whole(origin, &record.name)?;
        let stored = catalogue.disks_at(origin)?;
        let missing = self.state_disks(origin)?.into_iter().map(|state| state.disk);
        let disks_missing =
            missing.filter(|name| stored.iter().all(|(disk, _)| disk.name != *name)).collect();
        let disks = stored.into_iter().map(|(disk, _)| {
            let written_blocks = self.disk_map(origin, &disk)?.iter().count() as u64;
            Ok(BranchDisk { name: disk.name, size_bytes: disk.size_bytes, base: disk.base, written_blocks })
        });
        let is_data = |content: &ContentRef| content.stored().is_some();
        Ok(BranchPlan {
            machine: catalogue.machine_by_id(record.machine)?,
            data_pages: self.map(origin)?.iter().filter(is_data).count() as u64,
            disks: disks.collect::<Result<_>>()?,
            disks_missing,
            origin: record,
        })
    }
}

impl Recorder {
    /// Begins a branch: a new machine of that name, which is to go on from a checkpoint of another one and has the same
    /// identity but for its name. The answer is its recorder. What comes next:
    ///
    /// 1. [`Recorder::adopt`] gives a machine (a new process) what the other one had.
    /// 2. The caller gives it what tells it from the other one: a generation identifier.
    /// 3. [`Recorder::checkpoint`] takes its first checkpoint. Only what was written since is looked at and stored. With it
    ///    the branch is whole; then the machine may run.
    ///
    /// Until then the store holds half a machine, which [`Recorder::give_up_branch`] removes, or
    /// [`crate::Catalogue::forget_half_branches`] after a crash. The origin cannot be pruned meanwhile.
    pub fn begin_branch(
        store: &Arc<Store>,
        name: &str,
        origin: CheckpointId,
        request: &BranchRequest,
    ) -> Result<Self> {
        store.must_be_writable()?;
        let catalogue = store.catalogue();
        let record =
            catalogue.checkpoint(origin).map_err(|error| catalogue.explain_missing(origin, error))?;
        catalogue.must_be_whole(origin, &record.name)?;
        let mut identity = catalogue.machine_by_id(record.machine)?.identity;
        name.clone_into(&mut identity.name);
        let (id, branch) = catalogue.begin_branch(&identity, &request.runtime, origin, &request.detail)?;
        let recorder = Self::new(Arc::clone(store), id).inspect_err(|_| forget(store, id))?;
        let stand = Stand { branch: Some(branch), ..recorder.pipeline.stand() };
        recorder.pipeline.set_stand(stand);
        Ok(recorder)
    }

    /// Gives a machine of which nothing is known what the origin of a branch that was begun had: memory, state, disks.
    /// Nothing of its present is kept. It stays paused, and must not run before its first checkpoint; after a failure not
    /// at all. `progress` stops this with [`ControlFlow::Break`].
    pub fn adopt(
        &mut self,
        machine: &mut dyn Machine,
        clock: ClockPolicy,
        progress: &mut dyn FnMut(BranchProgress) -> ControlFlow<()>,
    ) -> Result<BranchReport> {
        let begun = Instant::now();
        let Some(branch) = self.pipeline.stand().branch else {
            let why = format!("{} is not a branch that was begun", self.name);
            return Err(Error::Invalid { what: "branch", why });
        };
        self.check(machine)?;
        machine.capabilities().check_clock(clock)?;
        let expected = self.store.catalogue().machine_by_id(self.machine)?.identity.driver;
        let found = &machine.identity().driver;
        if expected != *found {
            let what = "driver".into();
            return Err(Error::Machine(MachineError::Mismatch { what, expected, found: found.clone() }));
        }
        let target = self.target(machine, branch.origin)?;
        let mut timing = BranchTiming { read_us: since_us(begun), ..BranchTiming::default() };
        machine.pause()?;
        // Whatever was written before does not matter: every frame is looked at below.
        machine.take_dirty(&mut PageSet::empty(&self.layout))?;

        let start = Instant::now();
        let mut tell = |done, total| match progress(BranchProgress { done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        };
        let pages_written = self.fill(machine, &target.map, &mut tell)?;
        timing.fill_us = since_us(start);
        let start = Instant::now();
        let (state, blocks_written) = target.disks.go_from_anywhere(&self.store, machine, &target.state)?;
        timing.disk_us = since_us(start);
        let start = Instant::now();
        machine.apply_state(&state, clock)?;
        // So that the next changes of disks are counted from here.
        let disks = if machine.disks().is_empty() { Vec::new() } else { machine.capture_state()?.disks };
        timing.apply_us = since_us(start);

        let stands = target.disks.stands_at(&disks);
        self.disks = if stands.is_empty() { KeptDisks::default() } else { KeptDisks::at(disks) };
        self.pipeline.set_stand(Stand {
            position: None,
            map: target.map,
            keyframe_distance: 0,
            keyframe_rows: 0,
            disks: stands,
            branch: Some(branch),
        });
        self.dirty.take(self.own);
        Ok(BranchReport { origin: target.record, pages_written, blocks_written, timing })
    }

    /// The machine that it records.
    #[must_use]
    pub fn machine(&self) -> MachineId {
        self.machine
    }

    /// Removes a branch that has no checkpoint from the store. One that has stays as it is.
    pub fn give_up_branch(self) {
        let (store, id) = (Arc::clone(&self.store), self.machine);
        // What is on its way to the disk comes first.
        drop(self);
        forget(&store, id);
    }
}

fn forget(store: &Store, machine: MachineId) {
    if let Err(error) = store.catalogue().forget_branch(machine) {
        tracing::warn!(%error, "half a branch stays in the store until it is opened anew");
    }
}
