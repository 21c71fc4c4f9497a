use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A lock that is granted in the order of the requests. A thread that releases it between two batches and takes it
/// again lets every waiting thread go first, which [`Mutex`] does not guarantee.
pub(crate) struct FairLock<T> {
    tickets: Mutex<Tickets>,
    released: Condvar,
    value: Mutex<T>,
}

#[derive(Default)]
struct Tickets {
    next: u64,
    serving: u64,
}

/// A guard with access to the value.
pub(crate) struct FairGuard<'a, T> {
    lock: &'a FairLock<T>,
    value: MutexGuard<'a, T>,
}

impl<T> FairLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { tickets: Mutex::default(), released: Condvar::new(), value: Mutex::new(value) }
    }

    /// Waits for the threads that requested it earlier. Works also after a thread panicked while it held the lock.
    pub(crate) fn lock(&self) -> FairGuard<'_, T> {
        let mut tickets = unpoisoned(self.tickets.lock());
        let mine = tickets.next;
        tickets.next += 1;
        while tickets.serving != mine {
            tickets = unpoisoned(self.released.wait(tickets));
        }
        drop(tickets);
        FairGuard { lock: self, value: unpoisoned(self.value.lock()) }
    }
}

fn unpoisoned<G>(result: Result<G, PoisonError<G>>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl<T> Deref for FairGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for FairGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for FairGuard<'_, T> {
    fn drop(&mut self) {
        // The value itself is released right after this, when the fields are dropped: the next thread waits for it.
        unpoisoned(self.lock.tickets.lock()).serving += 1;
        self.lock.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_takes_it_again_lets_the_waiting_one_in_first() {
        let lock = FairLock::new(Vec::new());
        thread::scope(|scope| {
            let mut first = lock.lock();
            let (sender, receiver) = mpsc::channel();
            let lock = &lock;
            scope.spawn(move || {
                sender.send(()).unwrap();
                lock.lock().push("waiting");
            });
            receiver.recv().unwrap();
            while unpoisoned(lock.tickets.lock()).next < 2 {
                thread::sleep(Duration::from_millis(1));
            }
            first.push("first");
            drop(first);
            lock.lock().push("again");
        });
        assert_eq!(*lock.lock(), ["first", "waiting", "again"]);
    }

    #[test]
    fn a_panic_does_not_lock_it_for_ever() {
        let lock = FairLock::new(1);
        thread::scope(|scope| {
            let held = scope.spawn(|| {
                let _guard = lock.lock();
                panic!("while it is held");
            });
            assert!(held.join().is_err());
        });
        assert_eq!(*lock.lock(), 1);
    }
}
