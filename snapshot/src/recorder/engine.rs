use std::sync::Arc;

use retrovisor_guest::{Machine, MachineError, MemoryLayout, PageSet};

use super::dirty::{Consumer, DirtyEpochs};
use super::kept_disks::{KeptDisks, release};
use super::pipeline::Pipeline;
use super::settings::{MemoryUse, RecorderSettings};
use super::staging::Pool;
use super::stand::Stand;
use super::task::Done;
use crate::catalogue::Position;
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::store::Store;

/// Takes checkpoints of one machine and brings it back. Captures on the calling thread, stores on another one.
/// One a machine. Dropping it waits until all that was captured is stored.
pub struct Recorder {
    pub(super) store: Arc<Store>,
    pub(super) machine: MachineId,
    pub(super) name: String,
    pub(super) layout: MemoryLayout,
    pub(super) settings: RecorderSettings,
    pub(super) pipeline: Pipeline,
    pub(super) pool: Arc<Pool>,
    pub(super) dirty: DirtyEpochs,
    /// Checkpointing, as a consumer of dirty frames: those that no capture has yet.
    pub(super) own: Consumer,
    /// Frames that were copied in the last pause, and dirty in all: what the next capture will be like.
    pub(super) last_copied_pages: u64,
    pub(super) last_dirty_pages: u64,
    pub(super) disks: KeptDisks,
}

impl Recorder {
    /// A recorder for a machine of the store. It knows nothing of the machine's memory yet: its first checkpoint
    /// looks at every frame.
    pub fn new(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        Self::with_settings(store, machine, RecorderSettings::default())
    }

    /// A recorder that works as the settings say.
    pub fn with_settings(store: Arc<Store>, machine: MachineId, settings: RecorderSettings) -> Result<Self> {
        let record = store.catalogue().machine_by_id(machine)?;
        let layout = record.identity.layout;
        let pages = usize::try_from(layout.pages()).unwrap_or(usize::MAX);
        let stand = match record.position {
            Some(position) => Stand::at(&store, position)?,
            None => Stand::nowhere(pages),
        };
        let pipeline = Pipeline::start(&store, machine, &layout, stand, settings.group_checkpoints_max)?;
        let mut dirty = DirtyEpochs::new(&layout);
        let own = dirty.join();
        Ok(Self {
            store,
            machine,
            name: record.name,
            pool: Pool::new(settings.staging_bytes_max),
            layout,
            settings,
            pipeline,
            dirty,
            own,
            last_copied_pages: 0,
            last_dirty_pages: 0,
            disks: KeptDisks::default(),
        })
    }

    /// A recorder for a machine that was started afresh: its first checkpoint has no parent and begins a timeline.
    pub fn fresh(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        Self::fresh_with(store, machine, RecorderSettings::default())
    }

    /// The same, which works as the settings say.
    pub fn fresh_with(store: Arc<Store>, machine: MachineId, settings: RecorderSettings) -> Result<Self> {
        let recorder = Self::with_settings(store, machine, settings)?;
        let pages = usize::try_from(recorder.layout.pages()).unwrap_or(usize::MAX);
        recorder.pipeline.set_stand(Stand::nowhere(pages));
        Ok(recorder)
    }

    /// Tells of frames that somebody but the guest wrote (a fault that was injected): they are in the next checkpoint.
    pub fn note_written(&mut self, frames: &PageSet) {
        self.dirty.note(frames);
    }

    /// Another consumer of dirty frames (introspection, branching): what they look at is theirs, and takes nothing from
    /// checkpointing. To them every frame is written at first.
    pub fn watch(&mut self) -> Consumer {
        self.dirty.join()
    }

    /// The frames written since the consumer asked last, by the guest, by a rollback or by a fault; as of the last
    /// capture. Their next epoch begins.
    pub fn written_since(&mut self, consumer: Consumer) -> PageSet {
        self.dirty.take(consumer)
    }

    /// Gives frames back to a consumer who could not use them after all.
    pub fn give_back(&mut self, consumer: Consumer, frames: &PageSet) {
        self.dirty.give_back(consumer, frames);
    }

    /// Where the machine stands, by the last checkpoint that is durable.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.pipeline.stand().position
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

    /// Waits until nothing is on its way to the disk. What could not be stored is in the next capture.
    pub fn drain(&mut self, machine: &mut dyn Machine) {
        self.settle_until(machine, 0);
    }

    /// Takes note of what became of captures, and waits until at most `waiting_max` are on their way. After a failure
    /// it waits for all: those behind the one that failed come back as well, and only then is it known which frames
    /// no checkpoint has.
    pub(super) fn settle_until(&mut self, machine: &mut dyn Machine, waiting_max: usize) {
        let mut limit = waiting_max;
        let mut any_failed = false;
        loop {
            let wait = self.pipeline.waiting() > limit;
            let Some(Done { failed }) = self.pipeline.next_done(wait) else { break };
            if let Some((frames, state)) = failed {
                self.dirty.give_back(self.own, &frames);
                release(machine, &state);
                (limit, any_failed) = (0, true);
            }
        }
        if any_failed {
            self.disks.forget();
            self.pipeline.begin_anew();
        }
    }

    /// The machine given is the one recorded: same memory. A driver may have been started anew under another version.
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
