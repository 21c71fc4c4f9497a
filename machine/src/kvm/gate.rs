use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What the vCPU threads are to do, and how many of them are in the guest.
#[derive(Default)]
pub(super) struct Gate {
    /// Looked at between two entries into the guest.
    stop: AtomicBool,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    phase: Phase,
    /// vCPU threads between their entry and their exit.
    inside: usize,
    /// Why the guest can run no more.
    ended: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Stopped,
    Running,
    Over,
}

impl Gate {
    /// A vCPU thread waits here until it may enter the guest; `false` when it shall end.
    pub(super) fn enter(&self) -> bool {
        let mut inner = self.lock();
        loop {
            match inner.phase {
                Phase::Over => return false,
                Phase::Running => break,
                Phase::Stopped => {
                    inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        inner.inside += 1;
        true
    }

    /// A thread that brings input from outside enters like one of a vCPU, but does not wait: `false` when the machine does
    /// not run.
    pub(super) fn try_enter(&self) -> bool {
        let mut inner = self.lock();
        let running = inner.phase == Phase::Running;
        inner.inside += usize::from(running);
        running
    }

    /// A vCPU thread has left the guest, with what it had to do there done.
    pub(super) fn leave(&self) {
        let mut inner = self.lock();
        inner.inside -= 1;
        if inner.inside == 0 {
            self.changed.notify_all();
        }
    }

    /// Whether vCPU threads shall leave the guest.
    pub(super) fn wants_stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub(super) fn open(&self) {
        let mut inner = self.lock();
        if inner.phase == Phase::Stopped && inner.ended.is_none() {
            self.stop.store(false, Ordering::SeqCst);
            inner.phase = Phase::Running;
            self.changed.notify_all();
        }
    }

    /// Asks the vCPU threads to leave; `kick` pulls them out of the guest. Returns when all are out.
    pub(super) fn close(&self, kick: impl Fn()) {
        let mut inner = self.lock();
        if inner.phase == Phase::Running {
            inner.phase = Phase::Stopped;
        }
        self.stop.store(true, Ordering::SeqCst);
        if inner.inside > 0 {
            drop(inner);
            kick();
            inner = self.lock();
        }
        while inner.inside > 0 {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends all vCPU threads.
    pub(super) fn end(&self, kick: impl Fn()) {
        self.close(kick);
        self.lock().phase = Phase::Over;
        self.changed.notify_all();
    }

    /// The guest stops by itself: it shut down, or its vCPU cannot go on.
    pub(super) fn give_up(&self, why: String) {
        let mut inner = self.lock();
        inner.ended.get_or_insert(why);
        if inner.phase == Phase::Running {
            inner.phase = Phase::Stopped;
        }
        self.stop.store(true, Ordering::SeqCst);
    }

    /// A state was put back: what had ended the guest has not happened.
    pub(super) fn revive(&self) {
        self.lock().ended = None;
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().phase == Phase::Running
    }

    pub(super) fn ended(&self) -> Option<String> {
        self.lock().ended.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is whole after every line above, also when a thread panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
