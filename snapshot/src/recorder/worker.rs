use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use retrovisor_guest::{MemoryLayout, Page};

use super::pending::Stored;
use super::ready::{Open, Ready, Tip, note_times};
use super::report::CheckpointTiming;
use super::staging::Staged;
use super::stand::Stand;
use super::task::{Capture, Done, Moving, Task};
use crate::catalogue::{CheckpointKind, Commit, Committed, Hashes, Moment, Noted, lock};
use crate::clock::since_us;
use crate::content::ContentId;
use crate::disk::{DiskReady, block_changes_hash};
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::intake::{Intake, Progress};
use crate::store::{Store, changes_hash};

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
                    let group = self.group(*capture, &mut next);
                    self.store_group(&store, open.take(), group, &mut warm);
                }
            }
        }
        if let Some(mut open) = open {
            open.intake.abandon();
        }
    }

    /// The capture and those that wait behind it, as far as they are complete.
    fn group(&self, first: Capture, next: &mut Option<Task>) -> Vec<Capture> {
        let frames = |capture: &Capture| capture.staged.iter().map(|part| part.frames().len()).sum::<usize>();
        let mut total = frames(&first);
        let mut group = vec![first];
        while group.len() < self.group_checkpoints_max && total < GROUP_FRAMES_MAX {
            match self.inbox.try_recv() {
                Ok(Task::Capture(capture)) => {
                    total += frames(&capture);
                    group.push(*capture);
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
            None => match Open::begin(store) {
                Ok(open) => open,
                Err(error) => return (None, Err(error)),
            },
        };
        if let Some(spoiled) = &open.spoiled {
            let told = Err(Error::NotStored { cause: spoiled.to_string() });
            return (Some(open), told);
        }
        let taken = open
            .take_in(store, staged, &self.layout)
            .and_then(|()| if flush { open.intake.flush() } else { Ok(()) });
        let told = match taken {
            Ok(()) => Ok(()),
            Err(error) => {
                open.intake.abandon();
                let told = Err(Error::NotStored { cause: error.to_string() });
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
        group: Vec<Capture>,
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
            self.fail(old, Error::NotStored { cause: cause.to_owned() });
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
    #[expect(clippy::type_complexity, clippy::result_large_err, reason = "an error, and what it concerns")]
    fn try_store(
        &self,
        store: &Store,
        open: Option<Open<'_>>,
        group: Vec<Capture>,
        captures: &mut Vec<Capture>,
    ) -> Result<Vec<(Committed, CheckpointTiming, Vec<ContentId>)>, (Error, Vec<Capture>)> {
        let stand = lock(&self.stand).clone();
        let mut open = match open {
            Some(open) => open,
            None => match Open::begin(store) {
                Ok(open) => open,
                Err(error) => return Err((error, group)),
            },
        };
        if let Some(error) = open.spoiled.take() {
            return Err((error, group));
        }
        let mut tip = Tip::at(&stand);
        let mut all: Vec<Ready> = Vec::with_capacity(group.len());
        let mut rest = group.into_iter();
        for capture in rest.by_ref() {
            match open.ready(store, self.machine, &self.layout, &mut tip, capture) {
                Ok(ready) => all.push(ready),
                Err((error, capture)) => {
                    open.intake.abandon();
                    captures.extend(all.into_iter().map(|ready| ready.capture));
                    captures.push(capture);
                    return Err((error, rest.collect()));
                }
            }
        }
        let committed = Self::commit(store, &mut open.intake, &stand, &mut all);
        if committed.is_err() {
            open.intake.abandon();
        }
        drop(open);
        let answer = committed.map(|committed| {
            let last = all.last().map(|ready| {
                let disks = ready.disks.iter();
                let disks = disks.map(|disk| (disk.stand.record.name.clone(), disk.stand.clone())).collect();
                let checkpoint = &ready.checkpoint;
                (Arc::clone(&ready.map), checkpoint.keyframe_distance, checkpoint.keyframe_rows, disks)
            });
            for (committed, ready) in committed.iter().zip(&all) {
                let at = committed.position.checkpoint;
                store.keep_map(at, Arc::clone(&ready.map));
                for disk in &ready.disks {
                    store.keep_disk_map(at, disk.stand.record.id, Arc::clone(&disk.stand.map));
                }
            }
            if let (Some((map, keyframe_distance, keyframe_rows, disks)), Some(committed)) =
                (last, committed.last())
            {
                let position = Some(committed.position);
                *lock(&self.stand) =
                    Stand { position, map, keyframe_distance, keyframe_rows, disks, branch: None };
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

    /// Makes a group durable.
    fn commit(
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
            disks: ready.disks.iter().map(DiskReady::version).collect(),
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
            branch: stand.branch,
        };
        let committed = store.catalogue().commit(
            stand.position,
            &commit,
            &Hashes {
                changes: &|parent, changes| changes_hash(&store.key, parent, changes),
                blocks: &|parent, disk, changes| block_changes_hash(&store.key, parent, disk, changes),
            },
        )?;
        intake.committed(store.catalogue(), &sealed);
        let commit_us = since_us(start);
        for ready in all {
            ready.capture.timing.commit_us = commit_us;
        }
        Ok(committed)
    }

    /// Tells whoever waits.
    fn tell(
        &self,
        committed: Vec<(Committed, CheckpointTiming, Vec<ContentId>)>,
        captures: Vec<Capture>,
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
    fn fail(&mut self, captures: Vec<Capture>, error: Error) {
        let cause = error.to_string();
        let mut error = Some(error);
        for capture in captures {
            self.broken = self.broken.max(Some(capture.generation));
            let Capture { dirty, state, outcome, .. } = capture;
            // First what the recorder needs, then whoever waits: who was told finds the frames given back.
            let _ = self.done.send(Done { failed: Some((dirty, state)) });
            let told = error.take().unwrap_or_else(|| Error::NotStored { cause: cause.clone() });
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
