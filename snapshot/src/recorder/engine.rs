use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{Machine, MachineError, MachineState, MemoryLayout, PageSet, RunState};

use super::report::{CheckpointReport, CheckpointRequest, CheckpointTiming};
use super::staging::{StagedContent, Staging};
use crate::catalogue::{Commit, NewCheckpoint, NewOperation, OperationKind, OperationStatus, Position};
use crate::clock::{now_ms, since_us};
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::{MachineId, OperationId};
use crate::intake::Intake;
use crate::page_map::PageMap;
use crate::store::{Store, changes_hash, keyframe, store_state};

/// A full map is stored after so many checkpoints,
const KEYFRAME_DISTANCE: u64 = 64;
/// or once the changes since the last one outnumber the pages of the machine (but not before this many): whichever
/// comes first bounds what reading a map costs.
const KEYFRAME_ROWS_MIN: u64 = 1 << 14;
/// Longest label, in bytes.
const LABEL_MAX: usize = 200;

/// Takes checkpoints of one machine and brings it back. Blocks the calling thread; one a machine.
pub struct Recorder {
    pub(super) store: Arc<Store>,
    pub(super) machine: MachineId,
    pub(super) name: String,
    pub(super) layout: MemoryLayout,
    pub(super) stand: Stand,
    /// Frames that may differ from what is stored at `stand`: dirty ones that no checkpoint has yet.
    pub(super) unsaved: PageSet,
    pub(super) staging: Staging,
}

/// Where the machine stands, and what the store has in its frames there.
#[derive(Clone)]
pub(super) struct Stand {
    pub(super) position: Option<Position>,
    pub(super) map: Arc<PageMap>,
    keyframe_distance: u64,
    keyframe_rows: u64,
}

/// What is known of a checkpoint when it is committed.
pub(super) struct Taken<'a> {
    pub(super) request: &'a CheckpointRequest,
    pub(super) at_ms: i64,
    pub(super) state: &'a MachineState,
    /// The names of the staged pages that hold data.
    pub(super) names: Vec<ContentRef>,
}

impl Recorder {
    /// A recorder for a machine of the store. It knows nothing of the machine's memory yet: its first checkpoint
    /// looks at every frame.
    pub fn new(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        let record = store.catalogue().machine_by_id(machine)?;
        let layout = record.identity.layout;
        let pages = usize::try_from(layout.pages()).unwrap_or(usize::MAX);
        let stand = match record.position {
            Some(position) => Stand::at(&store, position)?,
            None => Stand::nowhere(pages),
        };
        let unsaved = PageSet::full(&layout);
        Ok(Self { store, machine, name: record.name, layout, stand, unsaved, staging: Staging::default() })
    }

    /// A recorder for a machine that was started afresh: its first checkpoint has no parent and begins a timeline.
    pub fn fresh(store: Arc<Store>, machine: MachineId) -> Result<Self> {
        let mut recorder = Self::new(store, machine)?;
        recorder.stand = Stand::nowhere(usize::try_from(recorder.layout.pages()).unwrap_or(usize::MAX));
        Ok(recorder)
    }

    /// Tells of frames that somebody but the guest wrote (a fault that was injected): they are in the next checkpoint.
    pub fn note_written(&mut self, frames: &PageSet) {
        self.unsaved.union(frames);
    }

    /// Where the machine stands.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.stand.position
    }

    /// The store it writes to.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Takes a checkpoint. The guest stands still only while its dirty frames are copied and its state is captured,
    /// and never because of a failure here: what could not be stored is in the next checkpoint.
    /// A machine that was paused stays paused.
    pub fn checkpoint(
        &mut self,
        machine: &mut dyn Machine,
        request: &CheckpointRequest,
    ) -> Result<CheckpointReport> {
        check_label(request.label.as_deref())?;
        self.check(machine)?;
        let was_running = machine.run_state() == RunState::Running;
        let mut timing = CheckpointTiming::default();
        let taken_at_ms = now_ms();
        let start = Instant::now();
        let captured = self.freeze(machine, &mut timing).and_then(|()| {
            let start = Instant::now();
            let state = machine.capture_state()?;
            timing.state_us = since_us(start);
            Ok(state)
        });
        let resumed = run_on(machine, was_running, &mut timing.resume_us);
        timing.pause_us = since_us(start);
        let state = captured?;

        let start = Instant::now();
        let stored = self.store_staged(request, taken_at_ms, &state, &mut timing);
        self.staging.clear();
        let position = match stored {
            Ok(position) => position,
            Err(error) => {
                release(machine, &state);
                return Err(error);
            }
        };
        timing.durable_us = since_us(start);
        self.store.catalogue().set_durable(position.checkpoint, timing.durable_us)?;
        let record = self.store.catalogue().checkpoint(position.checkpoint)?;
        resumed.map_err(Error::Resume)?;
        Ok(CheckpointReport { record, timing })
    }

    fn store_staged(
        &mut self,
        request: &CheckpointRequest,
        taken_at_ms: i64,
        state: &MachineState,
        timing: &mut CheckpointTiming,
    ) -> Result<Position> {
        let store = Arc::clone(&self.store);
        let mut intake = store.intake()?;
        let names = intake.add(&store.key, store.catalogue(), &self.staging.data());
        let committed = names.and_then(|names| {
            let taken = Taken { request, at_ms: taken_at_ms, state, names };
            let (machine, before, kind) = (self.machine, self.stand.position, request.kind);
            self.commit(&mut intake, &taken, timing, |after| {
                // Automatic checkpoints are no operations: their own list is their log.
                (kind == crate::catalogue::CheckpointKind::Manual).then_some(NewOperation {
                    machine,
                    kind: OperationKind::Checkpoint,
                    status: OperationStatus::Done,
                    before,
                    after: Some(after),
                    undoes: None,
                    detail: &serde_json::Value::Null,
                })
            })
        });
        if committed.is_err() {
            intake.abandon();
        }
        Ok(committed?.0)
    }

    /// Pauses, finds the dirty frames and copies them aside. Whatever fails, the frames stay in `unsaved`.
    pub(super) fn freeze(&mut self, machine: &mut dyn Machine, timing: &mut CheckpointTiming) -> Result<()> {
        let start = Instant::now();
        machine.pause()?;
        timing.stop_us = since_us(start);
        let start = Instant::now();
        machine.take_dirty(&mut self.unsaved)?;
        timing.find_us = since_us(start);
        let start = Instant::now();
        self.staging.fill(machine.memory(), &self.unsaved)?;
        timing.copy_us = since_us(start);
        Ok(())
    }

    /// Makes what was taken durable, and moves the machine's stand to it. On an error the caller abandons the intake.
    pub(super) fn commit<'o>(
        &mut self,
        intake: &mut Intake,
        taken: &Taken<'_>,
        timing: &mut CheckpointTiming,
        operation: impl FnOnce(Position) -> Option<NewOperation<'o>>,
    ) -> Result<(Position, Option<OperationId>)> {
        let (store, catalogue) = (&self.store, self.store.catalogue());
        let mut map = (*self.stand.map).clone();
        let mut changes = Vec::new();
        for frame in self.staging.frames() {
            let content = match frame.content {
                StagedContent::Zero => ContentRef::Zero,
                StagedContent::Removed => ContentRef::Removed,
                StagedContent::Data(at) => taken.names[at],
            };
            if map.get(frame.index) != content {
                map.set(frame.index, content);
                changes.push((frame.gfn, content));
            }
        }
        let state = store_state(&store.key, taken.state, |pages| intake.add(&store.key, catalogue, pages))?;
        let sealed = intake.seal()?;
        let start = Instant::now();
        let parent = self.stand.position;
        let (distance, rows) =
            (self.stand.keyframe_distance + 1, self.stand.keyframe_rows + changes.len() as u64);
        let is_key = parent.is_none()
            || distance >= KEYFRAME_DISTANCE
            || rows > self.layout.pages().max(KEYFRAME_ROWS_MIN);
        let full = if is_key { Some(keyframe(&store.key, &map)?) } else { None };
        let (keyframe_distance, keyframe_rows) = if is_key { (0, 0) } else { (distance, rows) };
        let checkpoint = NewCheckpoint {
            machine: self.machine,
            parent,
            label: taken.request.label.clone(),
            kind: taken.request.kind,
            taken_at_ms: taken.at_ms,
            pause_us: timing.pause_us,
            dirty_pages: self.staging.frames().len() as u64,
            changed_pages: changes.len() as u64,
            new_pages: sealed.contents.len() as u64,
            zero_pages: self.staging.zeros() as u64,
            stored_bytes: sealed.stored_bytes,
            keyframe_distance,
            keyframe_rows,
            changes_hash: changes_hash(&store.key, parent.map(|position| position.checkpoint), &changes),
        };
        let commit = Commit {
            checkpoint: &checkpoint,
            changes: &changes,
            keyframe: full.as_ref(),
            state: &state,
            frames: &sealed.frames,
            contents: &sealed.contents,
            packs: &sealed.packs,
        };
        let (position, operation) = catalogue.commit(&commit, operation)?;
        timing.commit_us = since_us(start);
        timing.hash_us = sealed.timing.hash_us;
        timing.dedupe_us = sealed.timing.dedupe_us;
        timing.compress_us = sealed.timing.compress_us;
        timing.write_us = sealed.timing.write_us;
        timing.sync_us = sealed.timing.sync_us;
        store.cache.put_all(intake.committed(catalogue, sealed).into_iter());
        let map = Arc::new(map);
        store.keep_map(position.checkpoint, Arc::clone(&map));
        self.stand = Stand { position: Some(position), map, keyframe_distance, keyframe_rows };
        self.unsaved.clear();
        Ok((position, operation))
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

impl Stand {
    /// Before the first checkpoint: the store has nothing in any frame.
    fn nowhere(pages: usize) -> Self {
        Self { position: None, map: Arc::new(PageMap::zero(pages)), keyframe_distance: 0, keyframe_rows: 0 }
    }

    /// At a checkpoint of the store.
    pub(super) fn at(store: &Store, position: Position) -> Result<Self> {
        let link = store.catalogue().link(position.checkpoint)?;
        Ok(Self {
            position: Some(position),
            map: store.map(position.checkpoint)?,
            keyframe_distance: link.keyframe_distance,
            keyframe_rows: link.keyframe_rows,
        })
    }
}

/// Lets the guest run on if it ran before.
pub(super) fn run_on(
    machine: &mut dyn Machine,
    was_running: bool,
    resume_us: &mut u64,
) -> Result<(), MachineError> {
    let start = Instant::now();
    let resumed = if was_running { machine.resume() } else { Ok(()) };
    *resume_us = since_us(start);
    if let Err(error) = &resumed {
        tracing::error!(machine = %machine.identity().name, %error, "the machine could not be resumed");
    }
    resumed
}

/// Lets go of what the driver set aside for a state that was not stored.
pub(super) fn release(machine: &mut dyn Machine, state: &MachineState) {
    if let Err(error) = machine.release_state(state) {
        tracing::warn!(%error, "what the driver set aside for a checkpoint that failed could not be released");
    }
}

fn check_label(label: Option<&str>) -> Result<()> {
    let Some(label) = label else { return Ok(()) };
    let reserved = ["present", "latest", "last-good"];
    let fits = (1..=LABEL_MAX).contains(&label.len())
        && !label.starts_with(['-', '@'])
        && !label.chars().any(char::is_control)
        && !reserved.contains(&label);
    if fits {
        return Ok(());
    }
    let why = format!(
        "{label:?} is not usable: 1 to {LABEL_MAX} bytes, not starting with '-' or '@', none of {}",
        reserved.join(", ")
    );
    Err(Error::Invalid { what: "label", why })
}
