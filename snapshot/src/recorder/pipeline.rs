use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use retrovisor_guest::MemoryLayout;

use super::audit::SharedAudit;
use super::baseline::Baseline;
use super::staging::Staged;
use super::task::{Done, Job, Task};
use super::worker::Worker;
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::mutex::lock;
use crate::store::Store;

/// The queue of the storing thread, and the thread itself, which stores captures in order.
pub(super) struct Pipeline {
    /// None once it ends.
    tasks: Option<Sender<Task>>,
    done: Receiver<Done>,
    waiting: usize,
    /// Incremented after a failure: captures of earlier generations are based on one that failed.
    generation: u64,
    baseline: Arc<Mutex<Baseline>>,
    thread: Option<JoinHandle<()>>,
}

impl Pipeline {
    pub(super) fn start(
        store: &Arc<Store>,
        machine: MachineId,
        layout: &MemoryLayout,
        baseline: Baseline,
        audit: SharedAudit,
        group_checkpoints_max: usize,
    ) -> Result<Self> {
        let baseline = Arc::new(Mutex::new(baseline));
        let (tasks, inbox) = unbounded();
        let (done_sender, done) = unbounded();
        let worker = Worker {
            store: Arc::clone(store),
            machine,
            layout: layout.clone(),
            baseline: Arc::clone(&baseline),
            inbox,
            done: done_sender,
            audit,
            group_checkpoints_max: group_checkpoints_max.max(1),
            failed_generation: None,
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.run())
            .map_err(Error::io("starting the thread that stores checkpoints of", store.dir()))?;
        Ok(Self { tasks: Some(tasks), done, waiting: 0, generation: 0, baseline, thread: Some(thread) })
    }

    /// What the next checkpoint is based on.
    pub(super) fn baseline(&self) -> Baseline {
        lock(&self.baseline).clone()
    }

    /// The machine was moved. Must not be called while a capture waits.
    pub(super) fn set_baseline(&self, baseline: Baseline) {
        *lock(&self.baseline) = baseline;
    }

    /// Captures that are not durable yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Submits frames of a capture that is not complete yet.
    pub(super) fn early(&self, staged: Vec<Staged>) {
        self.send(Task::Early(staged, None));
    }

    /// The same, even without any frames; the reply is sent when they are on the disk and the storing thread holds the
    /// content writer.
    pub(super) fn early_flushed(&self, staged: Vec<Staged>) -> Receiver<Result<()>> {
        let (reply, answer) = bounded(1);
        self.send(Task::Early(staged, Some(reply)));
        answer
    }

    /// Abandons the capture that the early frames belong to.
    pub(super) fn abandon_early(&self) {
        self.send(Task::AbandonEarly);
    }

    /// Submits a capture. Its outcome is sent to the job's receiver, and comes from [`Pipeline::next_done`].
    pub(super) fn submit(&mut self, mut job: Box<Job>) {
        job.generation = self.generation;
        self.waiting += 1;
        self.send(Task::Store(job));
    }

    /// The next outcome of a capture; if `wait` is not set, only one that is known already.
    pub(super) fn next_done(&mut self, wait: bool) -> Option<Done> {
        if self.waiting == 0 {
            return None;
        }
        let done = if wait { self.done.recv().ok() } else { self.done.try_recv().ok() };
        // The thread panicked: nothing more arrives.
        self.waiting = if done.is_none() && wait { 0 } else { self.waiting - usize::from(done.is_some()) };
        done
    }

    /// Later captures are not based on those that failed.
    pub(super) fn next_generation(&mut self) {
        self.generation += 1;
    }

    /// Waits until everything submitted is stored, and ends the thread.
    pub(super) fn finish(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that stores checkpoints panicked");
        }
    }

    fn send(&self, task: Task) {
        // Without a receiver the task is dropped: the receiver of its outcome finds that the thread ended.
        if let Some(tasks) = &self.tasks {
            let _ = tasks.send(task);
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests;
