use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use retrovisor_guest::{MemoryLayout, Page};

use super::audit::{SharedAudit, StoredCheckpoint, settle};
use super::baseline::Baseline;
use super::prepare::{Preparation, Prepared, Tip, note_times};
use super::report::CheckpointTiming;
use super::staging::Staged;
use super::task::{Captured, Done, Job, RollbackStage, Task};
use crate::catalogue::{
    CheckpointKind, CommitBatch, Committed, Hashes, PreparedCheckpoint, RecordedOperation,
};
use crate::clock::since_us;
use crate::content::ContentId;
use crate::content_writer::{ContentWriter, Progress};
use crate::disk::{PreparedDisk, block_changes_hash};
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::mutex::lock;
use crate::page_map::PageMap;
use crate::store::{Store, changes_hash};

/// Frames of captures that are made durable together, at most: bounds how long the first of them waits.
const GROUP_FRAMES_MAX: usize = 1 << 14;
/// Contents read into the page cache between two checks of the queue.
const READ_AHEAD_STEP: usize = 64;

/// The storing thread: hashes, deduplicates, compresses, appends, syncs and commits captures. Those that wait together
/// share one sync and one transaction.
pub(super) struct Worker {
    pub(super) store: Arc<Store>,
    pub(super) machine: MachineId,
    pub(super) layout: MemoryLayout,
    pub(super) baseline: Arc<Mutex<Baseline>>,
    pub(super) inbox: Receiver<Task>,
    pub(super) done: Sender<Done>,
    pub(super) audit: SharedAudit,
    pub(super) group_checkpoints_max: usize,
    /// The last generation of captures that is based on one that failed.
    pub(super) failed_generation: Option<u64>,
}

/// A group of captures that could not be stored, with the first error.
struct GroupFailed {
    error: Error,
    jobs: Vec<Job>,
}

/// A capture that was stored, and the contents that it replaced.
struct GroupMember {
    job: Job,
    committed: Committed,
    map: Arc<PageMap>,
    replaced: Vec<ContentId>,
    disks: Vec<PreparedDisk>,
}

impl Worker {
    /// Stores captures until the recorder is dropped.
    pub(super) fn run(mut self) {
        let store = Arc::clone(&self.store);
        let mut open: Option<Preparation<'_>> = None;
        let mut next = None;
        let mut read_ahead: Vec<ContentId> = Vec::new();
        loop {
            let task = match next.take() {
                Some(task) => task,
                None => match self.inbox.try_recv() {
                    Ok(task) => task,
                    Err(TryRecvError::Empty) if !read_ahead.is_empty() && open.is_none() => {
                        self.read_ahead(&mut read_ahead);
                        continue;
                    }
                    _ => match self.inbox.recv() {
                        Ok(task) => task,
                        Err(_) => break,
                    },
                },
            };
            match task {
                Task::Early(staged, reply) => {
                    let (preparation, added) = self.add_early(&store, open.take(), &staged, reply.is_some());
                    open = preparation;
                    if let Some(reply) = reply {
                        // The receiver may be gone.
                        let _ = reply.send(added);
                    }
                }
                Task::AbandonEarly => {
                    if let Some(mut open) = open.take() {
                        open.content_writer.abandon();
                    }
                }
                Task::Store(job) => {
                    let group = self.group(*job, &mut next);
                    self.store_group(&store, open.take(), group, &mut read_ahead);
                }
            }
        }
        if let Some(mut open) = open {
            open.content_writer.abandon();
        }
    }

    /// The capture and the complete ones that wait behind it.
    fn group(&self, first: Job, next: &mut Option<Task>) -> Vec<Job> {
        let frames = |job: &Job| job.captured.staged.iter().map(|part| part.frames().len()).sum::<usize>();
        let mut total = frames(&first);
        let mut group = vec![first];
        while group.len() < self.group_checkpoints_max && total < GROUP_FRAMES_MAX {
            match self.inbox.try_recv() {
                Ok(Task::Store(job)) => {
                    total += frames(&job);
                    group.push(*job);
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

    /// Adds frames before their capture is complete. If it fails, the capture fails.
    fn add_early<'s>(
        &self,
        store: &'s Store,
        open: Option<Preparation<'s>>,
        staged: &[Staged],
        flush: bool,
    ) -> (Option<Preparation<'s>>, Result<()>) {
        let mut open = match open {
            Some(open) => open,
            None => match Preparation::begin(store) {
                Ok(open) => open,
                Err(error) => return (None, Err(error)),
            },
        };
        if let Some(error) = &open.failed {
            let answer = Err(Error::NotStored { cause: error.to_string() });
            return (Some(open), answer);
        }
        let added = open
            .add_frames(store, staged, &self.layout)
            .and_then(|()| if flush { open.content_writer.flush() } else { Ok(()) });
        let answer = match added {
            Ok(()) => Ok(()),
            Err(error) => {
                open.content_writer.abandon();
                let answer = Err(Error::NotStored { cause: error.to_string() });
                open.failed = Some(error);
                answer
            }
        };
        (Some(open), answer)
    }

    /// Stores captures together: all of them become durable, or none.
    fn store_group(
        &mut self,
        store: &Store,
        open: Option<Preparation<'_>>,
        group: Vec<Job>,
        read_ahead: &mut Vec<ContentId>,
    ) {
        if let Some(failed) = self.failed_generation
            && group.iter().any(|job| job.generation <= failed)
        {
            // They were captured before it was known that an earlier one failed.
            if let Some(mut open) = open {
                open.content_writer.abandon();
            }
            let cause = "an earlier one could not be stored".to_owned();
            let (old, new) = group.into_iter().partition::<Vec<_>, _>(|job| job.generation <= failed);
            self.report_failure(old, Error::NotStored { cause });
            if !new.is_empty() {
                self.store_group(store, None, new, read_ahead);
            }
            return;
        }
        match self.try_store(store, open, group) {
            Ok(members) => self.report_committed(members, read_ahead),
            Err(failed) => self.report_failure(failed.jobs, failed.error),
        }
    }

    fn try_store(
        &self,
        store: &Store,
        open: Option<Preparation<'_>>,
        mut jobs: Vec<Job>,
    ) -> Result<Vec<GroupMember>, Box<GroupFailed>> {
        let failed = |error, jobs| Box::new(GroupFailed { error, jobs });
        let baseline = lock(&self.baseline).clone();
        let mut open = match open {
            Some(open) => open,
            None => match Preparation::begin(store) {
                Ok(open) => open,
                Err(error) => return Err(failed(error, jobs)),
            },
        };
        if let Some(error) = open.failed.take() {
            return Err(failed(error, jobs));
        }
        let mut tip = Tip::of(&baseline);
        let prepared = jobs
            .iter_mut()
            .map(|job| open.prepare(store, self.machine, &self.layout, &mut tip, &mut job.captured))
            .collect::<Result<Vec<Prepared>>>();
        let committed = prepared.and_then(|mut all| {
            let committed = Self::commit(store, &mut open.content_writer, &baseline, &mut jobs, &mut all)?;
            Ok((all, committed))
        });
        let (all, committed) = match committed {
            Ok(committed) => committed,
            Err(error) => {
                open.content_writer.abandon();
                return Err(failed(error, jobs));
            }
        };
        drop(open);
        self.keep_maps(store, &all, &committed);
        let mut members = Vec::with_capacity(jobs.len());
        for ((mut job, prepared), committed) in jobs.into_iter().zip(all).zip(committed) {
            job.captured.timing.durable_us = since_us(job.captured.since);
            let Prepared { map, replaced, disks, .. } = prepared;
            members.push(GroupMember { job, committed, map, replaced, disks });
        }
        let durable = members
            .iter()
            .map(|member| (member.committed.position.checkpoint, member.job.captured.timing.durable_us));
        if let Err(error) = store.catalogue().set_durable(&durable.collect::<Vec<_>>()) {
            tracing::warn!(%error, "how long checkpoints took could not be recorded");
        }
        Ok(members)
    }

    /// Keeps the maps of committed checkpoints in memory. The last one is the baseline of the next capture.
    fn keep_maps(&self, store: &Store, all: &[Prepared], committed: &[Committed]) {
        for (prepared, committed) in all.iter().zip(committed) {
            let at = committed.position.checkpoint;
            store.keep_map(at, Arc::clone(&prepared.map));
            for disk in &prepared.disks {
                store.keep_disk_map(at, disk.baseline.record.id, Arc::clone(&disk.baseline.map));
            }
        }
        if let (Some(last), Some(committed)) = (all.last(), committed.last()) {
            *lock(&self.baseline) = Baseline {
                position: Some(committed.position),
                map: Arc::clone(&last.map),
                keyframe_distance: last.checkpoint.keyframe_distance,
                keyframe_rows: last.checkpoint.keyframe_rows,
                disks: last.disk_baselines(),
                branch: None,
            };
        }
    }

    /// Makes a group durable.
    fn commit(
        store: &Store,
        content_writer: &mut ContentWriter,
        baseline: &Baseline,
        jobs: &mut [Job],
        all: &mut [Prepared],
    ) -> Result<Vec<Committed>> {
        let before = content_writer.progress();
        let sealed = content_writer.seal()?;
        let start = Instant::now();
        if let (Some(last), Some(job)) = (all.last_mut(), jobs.last_mut()) {
            // Pages that did not fill a frame were written only now.
            last.checkpoint.stored_bytes += sealed.stored_bytes - before.stored_bytes;
            let after = Progress { timing: sealed.timing, ..before };
            note_times(&mut job.captured.timing, &before, &after);
        }
        let checkpoints = all.iter().zip(&*jobs).map(|(prepared, job)| PreparedCheckpoint {
            checkpoint: &prepared.checkpoint,
            changes: &prepared.changes,
            keyframe: prepared.keyframe.as_ref(),
            state: &prepared.state,
            disks: prepared.disks.iter().map(PreparedDisk::version).collect(),
            operation: recorded_operation(&job.captured),
        });
        let batch = CommitBatch {
            contents: sealed.contents(),
            checkpoints: checkpoints.collect(),
            branch: baseline.branch,
        };
        let committed = store.catalogue().commit(
            baseline.position,
            &batch,
            &Hashes {
                changes: &|parent, changes| changes_hash(&store.key, parent, changes),
                blocks: &|parent, disk, changes| block_changes_hash(&store.key, parent, disk, changes),
            },
        )?;
        content_writer.committed(store.catalogue(), &sealed);
        let commit_us = since_us(start);
        for job in jobs {
            job.captured.timing.commit_us = commit_us;
        }
        Ok(committed)
    }

    /// Reports a group that is durable.
    fn report_committed(&self, members: Vec<GroupMember>, read_ahead: &mut Vec<ContentId>) {
        for GroupMember { job, committed, map, replaced, mut disks } in members {
            read_ahead.extend(replaced);
            let mut timing: CheckpointTiming = job.captured.timing;
            let start = Instant::now();
            let stored = StoredCheckpoint {
                sequence: committed.sequence,
                map: &map,
                dirty: &job.captured.dirty,
                sampled: job.captured.sampled.as_ref(),
                disks: &mut disks,
            };
            let is_mismatched = settle(&self.store, self.machine, &self.layout, &self.audit, stored);
            timing.compare_us = since_us(start);
            // The driver may release the states as soon as the recorder knows that they are stored.
            drop(disks);
            // The receivers may be gone.
            let _ = self.done.send(Done::Stored { is_mismatched });
            let _ = job.outcome.send(Ok((committed, timing)));
        }
        let pages_max = usize::try_from(self.store.cache.bytes().1).unwrap_or(usize::MAX) / size_of::<Page>();
        let too_many = read_ahead.len().saturating_sub(pages_max / 2);
        read_ahead.drain(..too_many);
    }

    /// Returns captures to the recorder: the first with the error, the others because they are based on it.
    fn report_failure(&mut self, jobs: Vec<Job>, error: Error) {
        let cause = error.to_string();
        let mut error = Some(error);
        for job in jobs {
            self.failed_generation = self.failed_generation.max(Some(job.generation));
            let Job { captured: Captured { dirty, state, sampled, .. }, outcome, .. } = job;
            let sampled_from = sampled.map(|sampled| sampled.from);
            // First to the recorder: a caller that has the outcome finds the frames returned.
            let _ = self.done.send(Done::Failed { dirty, state, sampled_from });
            let error = error.take().unwrap_or_else(|| Error::NotStored { cause: cause.clone() });
            if outcome.send(Err(error)).is_err() {
                tracing::warn!(%cause, "a checkpoint that no caller waits for could not be stored");
            }
        }
    }

    /// Reads what frames held before they changed into the page cache, while there is nothing else to do: a rollback
    /// by one step needs it.
    fn read_ahead(&self, wanted: &mut Vec<ContentId>) {
        let rest = wanted.len().saturating_sub(READ_AHEAD_STEP);
        let mut ids = self.store.cache.missing(wanted.drain(rest..));
        ids.sort_unstable();
        ids.dedup();
        let store = &self.store;
        let read = store.each_content(&ids, |id, page| {
            store.cache.put(id, Arc::clone(page));
            Ok(())
        });
        if let Err(error) = read {
            // A caller that needs the page gets the error; here it is only not cached.
            tracing::debug!(%error, "a page could not be read ahead");
        }
    }
}

/// The operation that is recorded with a checkpoint.
fn recorded_operation(captured: &Captured) -> RecordedOperation<'_> {
    match &captured.rollback {
        Some(RollbackStage::Started(rollback)) => RecordedOperation::RollbackStarted(rollback),
        Some(RollbackStage::Done(rollback)) => RecordedOperation::RollbackDone(rollback),
        None if captured.request.kind == CheckpointKind::Manual => RecordedOperation::Checkpoint,
        None => RecordedOperation::None,
    }
}
