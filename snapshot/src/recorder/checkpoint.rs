use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{Machine, MachineState, RunState};

use super::capture::{Draft, release, run_on};
use super::engine::{Recorder, Stand};
use super::report::{CheckpointReport, CheckpointRequest, CheckpointTiming};
use crate::catalogue::{
    CheckpointKind, Commit, NewCheckpoint, NewOperation, OperationKind, OperationStatus, Position,
};
use crate::clock::{now_ms, since_us};
use crate::content::ContentRef;
use crate::error::{Error, Result};
use crate::id::OperationId;
use crate::intake::Intake;
use crate::store::{changes_hash, keyframe, store_state};

/// From so many frames on that may be dirty (32 MiB), they are copied while the guest still runs. Fewer are copied
/// faster than they are looked for twice.
const PRECOPY_PAGES_MIN: u64 = 1 << 13;
/// A full map is stored after so many checkpoints,
const KEYFRAME_DISTANCE: u64 = 64;
/// or once the changes since the last one outnumber the pages of the machine (but not before this many): whichever
/// comes first bounds what reading a map costs.
const KEYFRAME_ROWS_MIN: u64 = 1 << 14;
/// Longest label, in bytes.
const LABEL_MAX: usize = 200;

/// What is known of a checkpoint when it is committed.
pub(super) struct Taken<'a> {
    pub(super) request: &'a CheckpointRequest,
    pub(super) at_ms: i64,
    pub(super) state: &'a MachineState,
    pub(super) draft: Draft,
}

impl Recorder {
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
        let store = Arc::clone(&self.store);
        let mut timing = CheckpointTiming::default();
        let mut draft = self.draft();
        let mut early = None;
        if self.unsaved.len() >= PRECOPY_PAGES_MIN {
            let start = Instant::now();
            let intake = early.insert(store.intake()?);
            if let Err(error) = self.precopy(machine, intake, &mut draft) {
                intake.abandon();
                return Err(error);
            }
            timing.precopy_us = since_us(start);
        }

        let was_running = machine.run_state() == RunState::Running;
        let at_ms = now_ms();
        let start = Instant::now();
        let captured = self.freeze(machine, &mut draft, &mut timing).and_then(|()| {
            let start = Instant::now();
            let state = machine.capture_state()?;
            timing.state_us = since_us(start);
            Ok(state)
        });
        let resumed = run_on(machine, was_running, &mut timing.resume_us);
        timing.pause_us = since_us(start);

        let start = Instant::now();
        let stored = captured.and_then(|state| {
            machine.sync_state(&state).inspect_err(|_| release(machine, &state))?;
            let mut intake = match early.take() {
                Some(intake) => intake,
                None => store.intake().inspect_err(|_| release(machine, &state))?,
            };
            let stored = self.store_draft(&mut intake, request, at_ms, &state, draft, &mut timing);
            stored.inspect_err(|_| {
                intake.abandon();
                release(machine, &state);
            })
        });
        self.staging.clear();
        if let Some(mut intake) = early {
            // Nothing was captured: what was stored for it goes.
            intake.abandon();
        }
        let position = stored?;
        timing.durable_us = since_us(start);
        self.store.catalogue().set_durable(position.checkpoint, timing.durable_us)?;
        let record = self.store.catalogue().checkpoint(position.checkpoint)?;
        resumed.map_err(Error::Resume)?;
        Ok(CheckpointReport { record, timing })
    }

    fn store_draft(
        &mut self,
        intake: &mut Intake,
        request: &CheckpointRequest,
        at_ms: i64,
        state: &MachineState,
        mut draft: Draft,
        timing: &mut CheckpointTiming,
    ) -> Result<Position> {
        let names = intake.add(&self.store.key, self.store.catalogue(), &self.staging.data())?;
        self.absorb(&names, &mut draft);
        let (machine, before, kind) = (self.machine, self.stand.position, request.kind);
        let taken = Taken { request, at_ms, state, draft };
        let (position, _) = self.commit(intake, taken, timing, |after| {
            // Automatic checkpoints are no operations: their own list is their log.
            (kind == CheckpointKind::Manual).then_some(NewOperation {
                machine,
                kind: OperationKind::Checkpoint,
                status: OperationStatus::Done,
                before,
                after: Some(after),
                undoes: None,
                detail: &serde_json::Value::Null,
            })
        })?;
        Ok(position)
    }

    /// Makes what was taken durable, and moves the machine's stand to it. On an error the caller abandons the intake.
    pub(super) fn commit<'o>(
        &mut self,
        intake: &mut Intake,
        taken: Taken<'_>,
        timing: &mut CheckpointTiming,
        operation: impl FnOnce(Position) -> Option<NewOperation<'o>>,
    ) -> Result<(Position, Option<OperationId>)> {
        let (store, catalogue) = (&self.store, self.store.catalogue());
        let map = Arc::new(taken.draft.map);
        let changes: Vec<_> = self
            .stand
            .map
            .diff(&map)
            .filter_map(|(index, _, content)| Some((self.layout.gfn(index as u64)?, content)))
            .collect();
        let is_zero = |index: u64| {
            let content = usize::try_from(index).map_or(ContentRef::Zero, |index| map.get(index));
            matches!(content, ContentRef::Zero | ContentRef::Removed)
        };
        let zero_pages = self.unsaved.indices().filter(|index| is_zero(*index)).count() as u64;
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
            dirty_pages: self.unsaved.len(),
            changed_pages: changes.len() as u64,
            new_pages: sealed.contents.len() as u64,
            zero_pages,
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
        store.keep_map(position.checkpoint, Arc::clone(&map));
        self.stand = Stand { position: Some(position), map, keyframe_distance, keyframe_rows };
        self.unsaved.clear();
        Ok((position, operation))
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
