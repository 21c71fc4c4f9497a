use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use retrovisor_guest::MemoryLayout;

use super::staging::Staged;
use super::stand::Stand;
use super::task::{Capture, Done, Task};
use super::worker::Worker;
use crate::catalogue::lock;
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::store::Store;

/// The way of captures to the disk: a queue, and a thread that stores what is in it, in order.
pub(super) struct Pipeline {
    /// None once it ends.
    tasks: Option<Sender<Task>>,
    done: Receiver<Done>,
    waiting: usize,
    /// Counted up after a failure: captures made before it was known build on one that is not there.
    generation: u64,
    stand: Arc<Mutex<Stand>>,
    thread: Option<JoinHandle<()>>,
}

impl Pipeline {
    pub(super) fn start(
        store: &Arc<Store>,
        machine: MachineId,
        layout: &MemoryLayout,
        stand: Stand,
        group_checkpoints_max: usize,
    ) -> Result<Self> {
        let stand = Arc::new(Mutex::new(stand));
        let (tasks, inbox) = unbounded();
        let (done_sender, done) = unbounded();
        let worker = Worker {
            store: Arc::clone(store),
            machine,
            layout: layout.clone(),
            stand: Arc::clone(&stand),
            inbox,
            done: done_sender,
            group_checkpoints_max: group_checkpoints_max.max(1),
            broken: None,
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.run())
            .map_err(Error::io("starting the thread that stores checkpoints of", store.dir()))?;
        Ok(Self { tasks: Some(tasks), done, waiting: 0, generation: 0, stand, thread: Some(thread) })
    }

    /// Where the machine stands by the last checkpoint that is durable.
    pub(super) fn stand(&self) -> Stand {
        lock(&self.stand).clone()
    }

    /// The machine was moved. Only while nothing waits.
    pub(super) fn set_stand(&self, stand: Stand) {
        *lock(&self.stand) = stand;
    }

    /// Captures that are not durable yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Hands over frames of a capture that is not complete yet.
    pub(super) fn early(&self, staged: Vec<Staged>) {
        self.send(Task::Early(staged, None));
    }

    /// The same; the answer comes when they are on the disk.
    pub(super) fn early_flushed(&self, staged: Vec<Staged>) -> Receiver<Result<()>> {
        let (told, answer) = bounded(1);
        self.send(Task::Early(staged, Some(told)));
        answer
    }

    /// There will be no capture to the early frames.
    pub(super) fn give_up(&self) {
        self.send(Task::GiveUp);
    }

    /// Hands over a capture. What becomes of it is told to its `outcome`, and comes from [`Pipeline::next_done`].
    pub(super) fn submit(&mut self, mut capture: Box<Capture>) {
        capture.generation = self.generation;
        self.waiting += 1;
        self.send(Task::Capture(capture));
    }

    /// What became of the oldest capture of which it is not known yet: at once if `wait` is not set.
    pub(super) fn next_done(&mut self, wait: bool) -> Option<Done> {
        if self.waiting == 0 {
            return None;
        }
        let done = if wait { self.done.recv().ok() } else { self.done.try_recv().ok() };
        // A thread that died answers nothing any more.
        self.waiting = if done.is_none() && wait { 0 } else { self.waiting - usize::from(done.is_some()) };
        done
    }

    /// Captures from now on do not build on those that failed.
    pub(super) fn begin_anew(&mut self) {
        self.generation += 1;
    }

    fn send(&self, task: Task) {
        // Without a receiver the task is dropped: whoever waits for its outcome is told that the thread ended.
        if let Some(tasks) = &self.tasks {
            let _ = tasks.send(task);
        }
    }
}

impl Drop for Pipeline {
    /// Waits until all that was captured is stored.
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that stores checkpoints panicked");
        }
    }
}

#[cfg(test)]
mod tests;
