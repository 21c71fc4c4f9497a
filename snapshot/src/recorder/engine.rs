use std::sync::{Arc, Mutex};

use retrovisor_guest::{Machine, MachineError, MemoryLayout, PageSet};

use super::audit::{AuditState, AuditStatus, Sampler};
use super::baseline::Baseline;
use super::dirty::{Consumer, DirtyEpochs};
use super::pending_failure::PendingFailure;
use super::pipeline::Pipeline;
use super::retained_disks::{RetainedDisks, release};
use super::settings::{MemoryUse, RecorderSettings};
use super::staging::Pool;
use super::task::Done;
use crate::catalogue::Position;
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::store::Store;

/// Takes checkpoints of one machine and moves it back to them. Captures on the calling thread, stores on another one.
/// There is one for each machine. Dropping it waits until everything captured is stored.
pub struct Recorder {
    pub(super) store: Arc<Store>,
    pub(super) machine: MachineId,
    pub(super) name: String,
    pub(super) layout: MemoryLayout,
    pub(super) settings: RecorderSettings,
    pub(super) pipeline: Pipeline,
    pub(super) pool: Arc<Pool>,
    pub(super) sampler: Sampler,
    pub(super) dirty: DirtyEpochs,
    /// Checkpointing as a consumer of dirty frames: those that no capture has yet.
    pub(super) own: Consumer,
    /// Frames that were copied in the last pause, and dirty in all: an estimate for the next capture.
    pub(super) last_copied_pages: u64,
    pub(super) last_dirty_pages: u64,
    pub(super) disks: RetainedDisks,
    /// Identifies the machine's process, if the caller named it.
    pub(super) process: Option<String>,
    /// Whether a rollback, undo, redo or restore is under way.
    pub(super) is_moving: bool,
    pub(super) pending_failure: Option<PendingFailure>,
}

impl Recorder {
    /// A recorder for a machine of the store. The machine's memory is unknown: its first checkpoint reads every frame.
    pub fn new(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        Self::with_settings(store, machine, RecorderSettings::default())
    }

    /// [`Recorder::new`] with settings.
    pub fn with_settings(store: Arc<Store>, machine: MachineId, settings: RecorderSettings) -> Result<Self> {
        let record = store.catalogue().machine_by_id(machine)?;
        let layout = record.identity.layout;
        let pages = usize::try_from(layout.pages()).unwrap_or(usize::MAX);
        let baseline = match record.position {
            Some(position) => Baseline::at(&store, position)?,
            None => Baseline::none(pages),
        };
        let newest = newest_sequence(&store, machine)?;
        let audit = Arc::new(Mutex::new(AuditState::new(layout.pages(), newest, settings.audit_blocks)));
        let sampler = Sampler::new(layout.pages(), settings.audit_frames, rand::random(), audit);
        let group_max = settings.group_checkpoints_max;
        let pipeline = Pipeline::start(&store, machine, &layout, baseline, sampler.shared(), group_max)?;
        let mut dirty = DirtyEpochs::new(&layout);
        let own = dirty.join();
        Ok(Self {
            store,
            machine,
            name: record.name,
            pool: Pool::new(settings.staging_bytes_max),
            sampler,
            layout,
            settings,
            pipeline,
            dirty,
            own,
            last_copied_pages: 0,
            last_dirty_pages: 0,
            disks: RetainedDisks::default(),
            process: None,
            is_moving: false,
            pending_failure: None,
        })
    }

    /// A recorder for a machine with a new process: its first checkpoint has no parent and begins a timeline.
    pub fn fresh(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        Self::fresh_with(store, machine, RecorderSettings::default())
    }

    /// [`Recorder::fresh`] with settings.
    pub fn fresh_with(store: Arc<Store>, machine: MachineId, settings: RecorderSettings) -> Result<Self> {
        if store.is_writable() {
            store.catalogue().forget_half_written(machine)?;
        }
        let recorder = Self::with_settings(store, machine, settings)?;
        let pages = usize::try_from(recorder.layout.pages()).unwrap_or(usize::MAX);
        recorder.pipeline.set_baseline(Baseline::none(pages));
        Ok(recorder)
    }

    /// Names the machine's process, so that it is recorded which process an interrupted rollback left half written:
    /// any text that no other process of this host has, such as its id with its start time. See
    /// [`Catalogue::interrupted`].
    ///
    /// [`Catalogue::interrupted`]: crate::Catalogue::interrupted
    pub fn set_process(&mut self, process: impl Into<String>) {
        self.process = Some(process.into());
    }

    /// Notes frames that something other than the guest wrote (an injected fault): they are in the next checkpoint.
    pub fn note_written(&mut self, frames: &PageSet) {
        self.dirty.note(frames);
    }

    /// Adds a consumer of dirty frames (introspection, branching), which is independent of checkpointing. For a new
    /// consumer, every frame is written.
    pub fn watch(&mut self) -> Consumer {
        self.dirty.join()
    }

    /// The frames written since the consumer called this last, by the guest, by a rollback or by a fault; as of the
    /// last capture. Its next epoch begins.
    pub fn written_since(&mut self, consumer: Consumer) -> PageSet {
        self.dirty.take(consumer)
    }

    /// Returns frames to a consumer that could not use them.
    pub fn give_back(&mut self, consumer: Consumer, frames: &PageSet) {
        self.dirty.give_back(consumer, frames);
    }

    /// The checkpoint and timeline that the next checkpoint is based on, as far as they are durable.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.pipeline.baseline().position
    }

    /// How much of the memory and of the disks is proven to equal the checkpoints.
    #[must_use]
    pub fn audit_status(&self) -> AuditStatus {
        self.sampler.state().status(self.sampler.frames())
    }

    /// The sequence number of the machine's newest checkpoint; 0 if there is none.
    pub(super) fn newest_sequence(&self) -> Result<u64> {
        newest_sequence(&self.store, self.machine)
    }

    /// The store it writes to.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Captures that are not durable yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.pipeline.waiting()
    }

    /// Memory in use for pages.
    #[must_use]
    pub fn memory_use(&self) -> MemoryUse {
        let (staging_bytes, staging_bytes_peak, staging_bytes_max) = self.pool.bytes();
        let (page_cache_bytes, page_cache_bytes_max) = self.store.cache.bytes();
        MemoryUse {
            staging_bytes,
            staging_bytes_peak,
            staging_bytes_max,
            page_cache_bytes,
            page_cache_bytes_max,
        }
    }

    /// Waits until every capture is stored. What could not be stored is in the next capture.
    pub fn drain(&mut self, machine: &mut dyn Machine) {
        self.collect_outcomes(machine, 0);
    }

    /// Collects the outcomes of captures, and waits until at most `waiting_max` are not stored. After a failure it
    /// waits for all: those after the failed one fail as well, and only then is it known which frames no checkpoint
    /// has.
    pub(super) fn collect_outcomes(&mut self, machine: &mut dyn Machine, waiting_max: usize) {
        let mut limit = waiting_max;
        let mut any_failed = false;
        loop {
            let wait = self.pipeline.waiting() > limit;
            let Some(done) = self.pipeline.next_done(wait) else { break };
            match done {
                Done::Stored { is_mismatched: false } => (),
                // Some writes were not reported, to no consumer: the next capture reads every frame.
                Done::Stored { is_mismatched: true } => self.dirty.note_all(),
                Done::Failed { dirty, state, sampled_from } => {
                    self.dirty.give_back(self.own, &dirty);
                    release(machine, &state);
                    if let Some(from) = sampled_from {
                        self.sampler.go_to(from.min(self.sampler.position()));
                    }
                    (limit, any_failed) = (0, true);
                }
            }
        }
        if any_failed {
            self.disks.forget();
            self.pipeline.next_generation();
        }
    }

    /// Checks that the machine is the one recorded: its memory layout is the same. The version of its driver may
    /// differ.
    pub(super) fn check(&self, machine: &dyn Machine) -> Result<()> {
        let layout = &machine.identity().layout;
        if *layout == self.layout {
            return Ok(());
        }
        Err(Error::Machine(MachineError::Mismatch {
            what: format!("memory of {}", self.name),
            expected: format!("{} pages in {} slots", self.layout.pages(), self.layout.slots().len()),
            found: format!("{} pages in {} slots", layout.pages(), layout.slots().len()),
        }))
    }
}

/// The sequence number of a machine's newest checkpoint; 0 if there is none.
fn newest_sequence(store: &Store, machine: MachineId) -> Result<u64> {
    let newest = store.catalogue().recent_checkpoints(machine, 1)?;
    Ok(newest.last().map_or(0, |record| record.sequence))
}
