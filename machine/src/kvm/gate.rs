use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How often the number of threads inside is polled before this thread sleeps.
const SPINS_MAX: u32 = 4_000;

/// The orders for the vCPU threads, and the number of those in the guest.
#[derive(Default)]
pub(super) struct Gate {
    /// Checked between two entries into the guest.
    stop: AtomicBool,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Copies of fields of `inner`, for polling without a lock.
    inside: AtomicUsize,
}

/// The order for a vCPU thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Enter the guest.
    Run,
    /// Save the vCPU's state, and call [`Gate::state_saved`].
    SaveState,
    /// End.
    End,
}

#[derive(Default)]
struct Inner {
    phase: Phase,
    /// vCPU threads between their entry and their exit.
    inside: usize,
    /// How often vCPU threads were requested to save states, and how many threads have not done so yet.
    save_requests: u64,
    saving: usize,
    /// Why the guest cannot continue.
    ended: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Stopped,
    Running,
    Over,
}

/// A thread inside the gate, which leaves when this is dropped, also in a panic.
pub(super) struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Gate {
    /// Waits, in a vCPU thread, for an order. `seen`: the last request to save its state that it saw.
    pub(super) fn enter(&self, seen: &mut u64) -> Next {
        let mut inner = self.lock();
        loop {
            if *seen != inner.save_requests {
                *seen = inner.save_requests;
                return Next::SaveState;
            }
            match inner.phase {
                Phase::Over => return Next::End,
                Phase::Running => break,
                Phase::Stopped => inner = self.wait(inner),
            }
        }
        self.step(&mut inner, 1);
        Next::Run
    }

    /// A vCPU thread has saved its state.
    pub(super) fn state_saved(&self) {
        let mut inner = self.lock();
        inner.saving -= 1;
        if inner.saving == 0 {
            self.changed.notify_all();
        }
    }

    /// Makes all `threads` vCPU threads, which are stopped, save their states.
    pub(super) fn request_state_save(&self, threads: usize) {
        let mut inner = self.lock();
        if inner.phase != Phase::Stopped {
            return;
        }
        inner.save_requests += 1;
        inner.saving = threads;
        self.changed.notify_all();
        while inner.saving > 0 {
            inner = self.wait(inner);
        }
    }

    /// Waits until all threads have left; `false` when the gate is opened before.
    pub(super) fn wait_all_out(&self) -> bool {
        let mut inner = self.lock();
        while inner.inside > 0 && inner.phase == Phase::Stopped {
            inner = self.wait(inner);
        }
        inner.phase == Phase::Stopped
    }

    /// Waits, in a thread with input from outside, until the machine runs. The thread is inside as long as the result
    /// exists. `None` when the machine has ended.
    pub(super) fn pass(&self) -> Option<Inside<'_>> {
        let mut inner = self.lock();
        loop {
            match inner.phase {
                Phase::Over => return None,
                Phase::Running => break,
                Phase::Stopped => inner = self.wait(inner),
            }
        }
        self.step(&mut inner, 1);
        drop(inner);
        Some(Inside(self))
    }

    /// As [`Gate::pass`], without waiting: `None` when the machine does not run.
    pub(super) fn try_pass(&self) -> Option<Inside<'_>> {
        let mut inner = self.lock();
        let running = inner.phase == Phase::Running;
        self.step(&mut inner, usize::from(running).cast_signed());
        drop(inner);
        running.then(|| Inside(self))
    }

    /// A vCPU thread has left the guest, and has done the work of its exit.
    pub(super) fn leave(&self) {
        let mut inner = self.lock();
        self.step(&mut inner, -1);
        if inner.inside == 0 {
            self.changed.notify_all();
        }
    }

    /// Whether vCPU threads must leave the guest.
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

    /// Tells the vCPU threads to leave; `kick` makes them exit the guest. Returns when all have left.
    pub(super) fn close(&self, kick: impl Fn()) {
        let mut inner = self.lock();
        if inner.phase == Phase::Running {
            inner.phase = Phase::Stopped;
        }
        self.stop.store(true, Ordering::SeqCst);
        if inner.inside > 0 {
            drop(inner);
            kick();
            // They usually leave sooner than this thread could be woken.
            for _ in 0..SPINS_MAX {
                if self.inside.load(Ordering::SeqCst) == 0 {
                    break;
                }
                std::hint::spin_loop();
            }
            inner = self.lock();
        }
        while inner.inside > 0 {
            inner = self.wait(inner);
        }
    }

    /// Ends all vCPU threads.
    pub(super) fn end(&self, kick: impl Fn()) {
        self.close(kick);
        self.lock().phase = Phase::Over;
        self.changed.notify_all();
    }

    /// The guest stops: it shut down, or its vCPU cannot continue.
    pub(super) fn give_up(&self, why: String) {
        let mut inner = self.lock();
        inner.ended.get_or_insert(why);
        if inner.phase == Phase::Running {
            inner.phase = Phase::Stopped;
        }
        self.stop.store(true, Ordering::SeqCst);
    }

    /// A state was restored: the guest has not ended.
    pub(super) fn revive(&self) {
        self.lock().ended = None;
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().phase == Phase::Running
    }

    pub(super) fn ended(&self) -> Option<String> {
        self.lock().ended.clone()
    }

    fn step(&self, inner: &mut Inner, by: isize) {
        inner.inside = inner.inside.saturating_add_signed(by);
        self.inside.store(inner.inside, Ordering::SeqCst);
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is whole after every line above, also when a thread panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
