use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use retrovisor_guest::{Gfn, MemoryLayout, Page, PageSet};

use super::pending::Stored;
use super::pipeline::{Capture, Done, Moving, Task};
use super::report::CheckpointTiming;
use super::staging::{Staged, StagedContent, StagedFrame};
use super::stand::Stand;
use crate::catalogue::{
    CheckpointKind, Commit, Committed, Keyframe, Moment, NewCheckpoint, Noted, StoredState, lock,
};
use crate::clock::since_us;
use crate::content::{ContentId, ContentRef};
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::intake::{Intake, Progress};
use crate::page_map::PageMap;
use crate::store::{Store, changes_hash, keyframe, store_state};

/// A full map is stored after so many checkpoints,
const KEYFRAME_DISTANCE: u64 = 64;
/// or once the changes since the last one outnumber the pages of the machine (but not before this many): whichever
/// comes first bounds what reading a map costs.
const KEYFRAME_ROWS_MIN: u64 = 1 << 14;
/// Frames of captures that are made durable together, at most: bounds how long the first of them waits.
const GROUP_FRAMES_MAX: usize = 1 << 14;
/// Contents read for the undo ring before looking for work again.
const WARM_STEP: usize = 64;

/// The thread that stores captures: hashes, deduplicates, compresses, appends, syncs and commits. Those that wait
/// together share one sync and one transaction.
pub(super) struct Worker {
    pub(super) store: Arc<Store>,
    pub(super) machine: MachineId,
    pub(super) layout: MemoryLayout,
    pub(super) stand: Arc<Mutex<Stand>>,
    pub(super) inbox: Receiver<Task>,
    pub(super) done: Sender<Done>,
    pub(super) group_checkpoints_max: usize,
    /// The last generation of captures that builds on one that failed.
    pub(super) broken: Option<u64>,
}

/// Frames of a capture that is not complete yet.
struct Open<'s> {
    intake: MutexGuard<'s, Intake>,
    /// What stands in the frames taken in so far.
    frames: Vec<(u32, ContentRef)>,
    before: Progress,
    spoiled: Option<Error>,
}

/// A capture taken in: all that the catalogue will be told.
struct Ready {
    capture: Box<Capture>,
    map: Arc<PageMap>,
    changes: Vec<(Gfn, ContentRef)>,
    /// What stood in the changed frames before.
    replaced: Vec<ContentId>,
    state: StoredState,
    keyframe: Option<Keyframe>,
    checkpoint: NewCheckpoint,
}

/// Where the next checkpoint of a group hangs.
struct Tip {
    map: Arc<PageMap>,
    is_first: bool,
    keyframe_distance: u64,
    keyframe_rows: u64,
}

impl Worker {
    /// Stores until there is nobody who could capture any more.
    pub(super) fn run(mut self) {
        let store = Arc::clone(&self.store);
        let mut open: Option<Open<'_>> = None;
        let mut next = None;
        let mut warm: Vec<ContentId> = Vec::new();
        loop {
            let task = match next.take() {
                Some(task) => task,
                None => match self.inbox.try_recv() {
                    Ok(task) => task,
                    Err(TryRecvError::Empty) if !warm.is_empty() && open.is_none() => {
                        self.warm(&mut warm);
                        continue;
                    }
                    _ => match self.inbox.recv() {
                        Ok(task) => task,
                        Err(_) => break,
                    },
                },
            };
            match task {
                Task::Early(staged, told) => {
                    let (taken, flushed) = self.early(&store, open.take(), &staged, told.is_some());
                    open = taken;
                    if let Some(told) = told {
                        // Whoever asked may be gone.
                        let _ = told.send(flushed);
                    }
                }
                Task::GiveUp => {
                    if let Some(mut open) = open.take() {
                        open.intake.abandon();
                    }
                }
                Task::Capture(capture) => {
                    let group = self.group(capture, &mut next);
                    self.store_group(&store, open.take(), group, &mut warm);
                }
            }
        }
        if let Some(mut open) = open {
            open.intake.abandon();
        }
    }

    /// The capture and those that wait behind it, as far as they are complete.
    fn group(&self, first: Box<Capture>, next: &mut Option<Task>) -> Vec<Box<Capture>> {
        let frames = |capture: &Capture| capture.staged.iter().map(|part| part.frames().len()).sum::<usize>();
        let mut total = frames(&first);
        let mut group = vec![first];
        while group.len() < self.group_checkpoints_max && total < GROUP_FRAMES_MAX {
            match self.inbox.try_recv() {
                Ok(Task::Capture(capture)) => {
                    total += frames(&capture);
                    group.push(capture);
                }
                Ok(other) => {
                    *next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        group
    }

    /// Takes frames in before their capture is complete. A failure spoils the capture.
    fn early<'s>(
        &self,
        store: &'s Store,
        open: Option<Open<'s>>,
        staged: &[Staged],
        flush: bool,
    ) -> (Option<Open<'s>>, Result<()>) {
        let mut open = match open {
            Some(open) => open,
            None => match store.intake() {
                Ok(intake) => {
                    let before = intake.so_far();
                    Open { intake, frames: Vec::new(), before, spoiled: None }
                }
                Err(error) => return (None, Err(error)),
            },
        };
        if let Some(spoiled) = &open.spoiled {
            let told = Err(Error::Behind { cause: spoiled.to_string() });
            return (Some(open), told);
        }
        let frames = latest(staged, &self.layout);
        let taken = take_in(store, &mut open.intake, &frames, &mut open.frames)
            .and_then(|()| if flush { open.intake.flush() } else { Ok(()) });
        let told = match taken {
            Ok(()) => Ok(()),
            Err(error) => {
                open.intake.abandon();
                let told = Err(Error::Behind { cause: error.to_string() });
                open.spoiled = Some(error);
                told
            }
        };
        (Some(open), told)
    }

    /// Stores captures together: all of them become durable, or none.
    fn store_group(
        &mut self,
        store: &Store,
        open: Option<Open<'_>>,
        group: Vec<Box<Capture>>,
        warm: &mut Vec<ContentId>,
    ) {
        if let Some(broken) = self.broken
            && group.iter().any(|capture| capture.generation <= broken)
        {
            // They were captured before it was known that one before them is not there.
            if let Some(mut open) = open {
                open.intake.abandon();
            }
            let cause = "an earlier one could not be stored";
            let (old, new) = group.into_iter().partition(|capture| capture.generation <= broken);
            self.fail(old, Error::Behind { cause: cause.to_owned() });
            if !Vec::is_empty(&new) {
                self.store_group(store, None, new, warm);
            }
            return;
        }
        let mut captures = Vec::with_capacity(group.len());
        match self.try_store(store, open, group, &mut captures) {
            Ok(committed) => self.tell(committed, captures, warm),
            Err((error, rest)) => {
                captures.extend(rest);
                self.fail(captures, error);
            }
        }
    }

    /// The captures come back in `ready` as far as they were taken in, with the error otherwise.
    #[expect(clippy::type_complexity, reason = "an error, and what it concerns")]
    fn try_store(
        &self,
        store: &Store,
        open: Option<Open<'_>>,
        group: Vec<Box<Capture>>,
        captures: &mut Vec<Box<Capture>>,
    ) -> Result<Vec<(Committed, CheckpointTiming, Vec<ContentId>)>, (Error, Vec<Box<Capture>>)> {
        let stand = lock(&self.stand).clone();
        let mut open = match open {
            Some(open) => open,
            None => match store.intake() {
                Ok(intake) => {
                    let before = intake.so_far();
                    Open { intake, frames: Vec::new(), before, spoiled: None }
                }
                Err(error) => return Err((error, group)),
            },
        };
        if let Some(error) = open.spoiled.take() {
            return Err((error, group));
        }
        let mut tip = Tip {
            map: Arc::clone(&stand.map),
            is_first: stand.position.is_none(),
            keyframe_distance: stand.keyframe_distance,
            keyframe_rows: stand.keyframe_rows,
        };
        let mut all: Vec<Ready> = Vec::with_capacity(group.len());
        let mut rest = group.into_iter();
        for capture in rest.by_ref() {
            match self.ready(store, &mut open, &mut tip, capture) {
                Ok(ready) => all.push(ready),
                Err((error, capture)) => {
                    open.intake.abandon();
                    captures.extend(all.into_iter().map(|ready| ready.capture));
                    captures.push(capture);
                    return Err((error, rest.collect()));
                }
            }
        }
        let committed = self.commit(store, &mut open.intake, &stand, &mut all);
        if committed.is_err() {
            open.intake.abandon();
        }
        drop(open);
        let answer = committed.map(|committed| {
            let last = all.last().map(|ready| {
                (Arc::clone(&ready.map), ready.checkpoint.keyframe_distance, ready.checkpoint.keyframe_rows)
            });
            for (committed, ready) in committed.iter().zip(&all) {
                store.keep_map(committed.position.checkpoint, Arc::clone(&ready.map));
            }
            if let (Some((map, keyframe_distance, keyframe_rows)), Some(committed)) = (last, committed.last())
            {
                let position = Some(committed.position);
                *lock(&self.stand) = Stand { position, map, keyframe_distance, keyframe_rows };
            }
            committed
                .into_iter()
                .zip(&mut all)
                .map(|(committed, ready)| {
                    ready.capture.timing.durable_us = since_us(ready.capture.since);
                    (committed, ready.capture.timing, std::mem::take(&mut ready.replaced))
                })
                .collect::<Vec<_>>()
        });
        captures.extend(all.into_iter().map(|ready| ready.capture));
        let committed = answer.map_err(|error| (error, Vec::new()))?;
        let durable: Vec<_> =
            committed.iter().map(|(c, timing, _)| (c.position.checkpoint, timing.durable_us)).collect();
        if let Err(error) = store.catalogue().set_durable(&durable) {
            tracing::warn!(%error, "how long checkpoints took could not be noted");
        }
        Ok(committed)
    }

    /// Takes one capture in.
    fn ready(
        &self,
        store: &Store,
        open: &mut Open<'_>,
        tip: &mut Tip,
        mut capture: Box<Capture>,
    ) -> Result<Ready, (Error, Box<Capture>)> {
        let staged = std::mem::take(&mut capture.staged);
        let frames = latest(&staged, &self.layout);
        let taken = take_in(store, &mut open.intake, &frames, &mut open.frames).and_then(|()| {
            let mut kept = Vec::new();
            let state = store_state(&store.key, &capture.state, |pages| {
                let names = open.intake.add(&store.key, store.catalogue(), pages)?;
                let named = names.iter().zip(pages).filter_map(|(name, page)| Some((name.stored()?, **page)));
                kept.extend(named);
                Ok(names)
            })?;
            store.cache.fill(kept.iter().map(|(id, page)| (*id, page)));
            Ok(state)
        });
        drop(staged);
        let state = match taken {
            Ok(state) => state,
            Err(error) => return Err((error, capture)),
        };
        let mut map = (*tip.map).clone();
        for (index, content) in open.frames.drain(..) {
            map.set(index as usize, content);
        }
        let (mut changes, mut replaced) = (Vec::new(), Vec::new());
        for (index, old, new) in tip.map.diff(&map) {
            changes.extend(self.layout.gfn(index as u64).map(|gfn| (gfn, new)));
            replaced.extend(old.stored());
        }
        let zero_pages = count_zero(&capture.dirty, &map);
        let (distance, rows) = (tip.keyframe_distance + 1, tip.keyframe_rows + changes.len() as u64);
        let is_key = tip.is_first
            || distance >= KEYFRAME_DISTANCE
            || rows > self.layout.pages().max(KEYFRAME_ROWS_MIN);
        let full = if is_key { keyframe(&store.key, &map).map(Some) } else { Ok(None) };
        let keyframe = match full {
            Ok(full) => full,
            Err(error) => return Err((error, capture)),
        };
        let (keyframe_distance, keyframe_rows) = if is_key { (0, 0) } else { (distance, rows) };
        let map = Arc::new(map);
        *tip = Tip { map: Arc::clone(&map), is_first: false, keyframe_distance, keyframe_rows };
        let after = open.intake.so_far();
        let before = std::mem::replace(&mut open.before, after);
        note_times(&mut capture.timing, &before, &after);
        let checkpoint = NewCheckpoint {
            machine: self.machine,
            label: capture.request.label.clone(),
            kind: capture.request.kind,
            taken_at_ms: capture.at_ms,
            pause_us: capture.timing.pause_us,
            dirty_pages: capture.dirty.len(),
            changed_pages: changes.len() as u64,
            new_pages: after.contents - before.contents,
            zero_pages,
            stored_bytes: after.stored_bytes - before.stored_bytes,
            keyframe_distance,
            keyframe_rows,
        };
        Ok(Ready { capture, map, changes, replaced, state, keyframe, checkpoint })
    }

    /// Makes a group durable.
    fn commit(
        &self,
        store: &Store,
        intake: &mut Intake,
        stand: &Stand,
        all: &mut [Ready],
    ) -> Result<Vec<Committed>> {
        let before = intake.so_far();
        let sealed = intake.seal()?;
        let start = std::time::Instant::now();
        if let Some(last) = all.last_mut() {
            // What did not fill a frame was written only now.
            last.checkpoint.stored_bytes += sealed.stored_bytes - before.stored_bytes;
            let after = Progress { timing: sealed.timing, ..before };
            note_times(&mut last.capture.timing, &before, &after);
        }
        let moments = all.iter().map(|ready| Moment {
            checkpoint: &ready.checkpoint,
            changes: &ready.changes,
            keyframe: ready.keyframe.as_ref(),
            state: &ready.state,
            noted: match &ready.capture.moving {
                Some(Moving::Begins(to)) => Noted::Moving(to),
                Some(Moving::Happened(to)) => Noted::Moved(to),
                None if ready.capture.request.kind == CheckpointKind::Manual => Noted::Asked,
                None => Noted::Nothing,
            },
        });
        let commit = Commit {
            frames: &sealed.frames,
            contents: &sealed.contents,
            packs: &sealed.packs,
            moments: moments.collect(),
        };
        let committed = store
            .catalogue()
            .commit(stand.position, &commit, |parent, changes| changes_hash(&store.key, parent, changes))?;
        intake.committed(store.catalogue(), &sealed);
        let commit_us = since_us(start);
        for ready in all {
            ready.capture.timing.commit_us = commit_us;
        }
        Ok(committed)
    }

    fn tell(
        &self,
        committed: Vec<(Committed, CheckpointTiming, Vec<ContentId>)>,
        captures: Vec<Box<Capture>>,
        warm: &mut Vec<ContentId>,
    ) {
        for ((committed, timing, replaced), capture) in committed.into_iter().zip(captures) {
            warm.extend(replaced);
            // Nobody has to wait for either.
            let _ = self.done.send(Done { failed: None });
            let _ = capture.outcome.send(Ok(Stored { committed, timing }));
        }
        let room = usize::try_from(self.store.cache.bytes().1).unwrap_or(usize::MAX) / size_of::<Page>();
        let too_many = warm.len().saturating_sub(room / 2);
        warm.drain(..too_many);
    }

    /// Gives captures back: the first with the error, the others because they build on it.
    fn fail(&mut self, captures: Vec<Box<Capture>>, error: Error) {
        let cause = error.to_string();
        let mut error = Some(error);
        for capture in captures {
            self.broken = self.broken.max(Some(capture.generation));
            let Capture { dirty, state, outcome, .. } = *capture;
            // First what the recorder needs, then whoever waits: who was told finds the frames given back.
            let _ = self.done.send(Done { failed: Some((dirty, state)) });
            let told = error.take().unwrap_or_else(|| Error::Behind { cause: cause.clone() });
            if outcome.send(Err(told)).is_err() {
                tracing::warn!(%cause, "a checkpoint that nobody waits for could not be stored");
            }
        }
    }

    /// Reads what stood in frames before they changed into the undo ring, while there is nothing else to do.
    fn warm(&self, wanted: &mut Vec<ContentId>) {
        let rest = wanted.len().saturating_sub(WARM_STEP);
        let mut ids = self.store.cache.missing(wanted.drain(rest..));
        ids.sort_unstable();
        ids.dedup();
        let store = &self.store;
        let read = store.each_content(&ids, |id, page| {
            store.cache.put(id, Arc::clone(page));
            Ok(())
        });
        if let Err(error) = read {
            // Whoever needs the page is told. Here it is only not kept.
            tracing::debug!(%error, "a page could not be read ahead");
        }
    }
}

/// The newest copy of every frame.
fn latest<'a>(staged: &'a [Staged], layout: &MemoryLayout) -> Vec<(&'a Staged, StagedFrame)> {
    let mut newest = Vec::with_capacity(staged.iter().map(|part| part.frames().len()).sum());
    if let [only] = staged {
        newest.extend(only.frames().iter().map(|frame| (only, *frame)));
        return newest;
    }
    let mut seen = PageSet::empty(layout);
    for part in staged.iter().rev() {
        let new = part.frames().iter().filter(|frame| seen.insert_index(u64::from(frame.index)));
        newest.extend(new.map(|frame| (part, *frame)));
    }
    newest
}

/// Takes frames in, and notes what stands in each. Their pages go to the undo ring as well.
fn take_in(
    store: &Store,
    intake: &mut Intake,
    frames: &[(&Staged, StagedFrame)],
    into: &mut Vec<(u32, ContentRef)>,
) -> Result<()> {
    let pages: Vec<&Page> = frames
        .iter()
        .filter_map(|(part, frame)| match frame.content {
            StagedContent::Data(place) => Some(part.page(place)),
            StagedContent::Zero | StagedContent::Removed => None,
        })
        .collect();
    let names = intake.add(&store.key, store.catalogue(), &pages)?;
    store.cache.fill(names.iter().zip(&pages).filter_map(|(name, page)| Some((name.stored()?, *page))));
    let mut names = names.into_iter();
    into.extend(frames.iter().map(|(_, frame)| {
        let content = match frame.content {
            StagedContent::Zero => ContentRef::Zero,
            StagedContent::Removed => ContentRef::Removed,
            StagedContent::Data(_) => names.next().unwrap_or(ContentRef::Zero),
        };
        (frame.index, content)
    }));
    Ok(())
}

fn count_zero(dirty: &PageSet, map: &PageMap) -> u64 {
    let is_zero = |index: &u64| {
        let content = usize::try_from(*index).map_or(ContentRef::Zero, |index| map.get(index));
        matches!(content, ContentRef::Zero | ContentRef::Removed)
    };
    dirty.indices().filter(is_zero).count() as u64
}

/// Adds the times between two instants of the intake.
fn note_times(timing: &mut CheckpointTiming, before: &Progress, after: &Progress) {
    let (before, after) = (before.timing, after.timing);
    timing.hash_us += after.hash_us - before.hash_us;
    timing.dedupe_us += after.dedupe_us - before.dedupe_us;
    timing.compress_us += after.compress_us - before.compress_us;
    timing.write_us += after.write_us - before.write_us;
    timing.sync_us += after.sync_us - before.sync_us;
}
