//! Branches: a second machine that starts from a checkpoint of another one.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{ClockPolicy, DiskBase, Machine, MachineError, PageSet};
use serde::Serialize;

use super::baseline::Baseline;
use super::engine::Recorder;
use super::retained_disks::RetainedDisks;
use crate::catalogue::{CheckpointRecord, MachineRecord};
use crate::clock::since_us;
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, MachineId};
use crate::store::Store;

/// What a branch would have.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchPlan {
    /// The machine that it branches off from.
    pub machine: MachineRecord,
    /// Its checkpoint.
    pub origin: CheckpointRecord,
    /// Pages of the memory that hold data. The others are zero and take no space.
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
    /// Its base image.
    pub base: Option<DiskBase>,
    /// Blocks that the guest has written, which are copied.
    pub written_blocks: u64,
}

/// How a branch is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BranchRequest {
    /// What the manager needs to find the new machine's process again; the store does not read it.
    pub runtime: String,
    /// Why: kept with the operation. JSON object, or null.
    pub detail: serde_json::Value,
}

/// A machine into which a checkpoint of another one was loaded.
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
    /// Applying vCPUs, devices and disks.
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
    /// What a branch of a checkpoint would have; fails if there can be none.
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
    /// Begins a branch: a new machine of that name, which starts from a checkpoint of another one and has the same
    /// identity but for its name. Returns its recorder. The next steps:
    ///
    /// 1. [`Recorder::adopt`] loads the origin into a machine (a new process).
    /// 2. The caller gives it what distinguishes it from the other one: a generation identifier.
    /// 3. [`Recorder::checkpoint`] takes its first checkpoint. Only what was written since is read and stored. With it
    ///    the branch is complete, and the machine may run.
    ///
    /// Until then the machine is incomplete: [`Recorder::abandon_branch`] removes it, or
    /// [`crate::Catalogue::remove_incomplete_branches`] after a crash. The origin cannot be pruned meanwhile.
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
        let baseline = Baseline { branch: Some(branch), ..recorder.pipeline.baseline() };
        recorder.pipeline.set_baseline(baseline);
        Ok(recorder)
    }

    /// Loads the origin of a branch that was begun into a machine of which nothing is known: memory, state, disks. The
    /// machine's own state is not kept. It stays paused, and must not run before its first checkpoint; after a failure
    /// not at all. `progress` stops this with [`ControlFlow::Break`].
    pub fn adopt(
        &mut self,
        machine: &mut dyn Machine,
        clock: ClockPolicy,
        progress: &mut dyn FnMut(BranchProgress) -> ControlFlow<()>,
    ) -> Result<BranchReport> {
        let begun = Instant::now();
        let Some(branch) = self.pipeline.baseline().branch else {
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
        machine.check_state(&target.state)?;
        let mut timing = BranchTiming { read_us: since_us(begun), ..BranchTiming::default() };
        machine.pause()?;
        // What was written before does not matter: every frame is compared below.
        machine.take_dirty(&mut PageSet::empty(&self.layout))?;

        let start = Instant::now();
        let mut report = |done, total| match progress(BranchProgress { done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        };
        let pages_written = self.fill(machine, &target.map, &mut report)?;
        timing.fill_us = since_us(start);
        let start = Instant::now();
        let (state, blocks_written) = target.disks.restore_unknown(&self.store, machine, &target.state)?;
        timing.disk_us = since_us(start);
        let start = Instant::now();
        machine.apply_state(&state, clock)?;
        // So that the next changes of disks are relative to this state.
        let disks = if machine.disks().is_empty() { Vec::new() } else { machine.capture_state()?.disks };
        timing.apply_us = since_us(start);

        let baselines = target.disks.baselines_at(&disks);
        self.disks = if baselines.is_empty() { RetainedDisks::default() } else { RetainedDisks::at(disks) };
        self.pipeline.set_baseline(Baseline {
            position: None,
            map: target.map,
            keyframe_distance: 0,
            keyframe_rows: 0,
            disks: baselines,
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

    /// Removes a branch that has no checkpoint from the store. One that has a checkpoint stays.
    pub fn abandon_branch(self) {
        let (store, id) = (Arc::clone(&self.store), self.machine);
        // First, what is being stored is stored.
        drop(self);
        forget(&store, id);
    }
}

fn forget(store: &Store, machine: MachineId) {
    if let Err(error) = store.catalogue().forget_branch(machine) {
        tracing::warn!(%error, "an incomplete branch stays in the store until it is opened again");
    }
}
