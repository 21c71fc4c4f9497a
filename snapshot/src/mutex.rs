use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lock's guard, also after a panic: SQLite's transactions keep the data consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
