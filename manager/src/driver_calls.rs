//! Which call of its driver a machine is in, and whether that call returns in time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longer than any driver waits for its process: a job of QEMU has two minutes, each answer around it 20 s.
const CALL_WAIT: Duration = Duration::from_mins(5);
/// The bits of [`DriverCalls::now`] that say which call it is.
const CALL_BITS: u32 = 8;

/// A call of a machine that may wait for its process.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Call {
    RunState = 1,
    Pause,
    Resume,
    Events,
    Links,
    TakeDirty,
    WritePage,
    WriteLines,
    CheckDevices,
    CaptureState,
    SyncState,
    CheckState,
    ApplyState,
    ReleaseState,
    DiskChanges,
    DiskBlocks,
    RetainedDisks,
    WriteBlocks,
    RenewIdentity,
    MakeIndependent,
    Detach,
    Quit,
}

impl Call {
    const ALL: [Self; 22] = [
        Self::RunState,
        Self::Pause,
        Self::Resume,
        Self::Events,
        Self::Links,
        Self::TakeDirty,
        Self::WritePage,
        Self::WriteLines,
        Self::CheckDevices,
        Self::CaptureState,
        Self::SyncState,
        Self::CheckState,
        Self::ApplyState,
        Self::ReleaseState,
        Self::DiskChanges,
        Self::DiskBlocks,
        Self::RetainedDisks,
        Self::WriteBlocks,
        Self::RenewIdentity,
        Self::MakeIndependent,
        Self::Detach,
        Self::Quit,
    ];
}

/// How long a call of a driver may take: one limit for all machines of a manager.
#[derive(Clone)]
pub(crate) struct CallWait(Arc<AtomicU64>);

impl Default for CallWait {
    fn default() -> Self {
        let wait = Self(Arc::default());
        wait.set(CALL_WAIT);
        wait
    }
}

impl CallWait {
    pub(crate) fn set(&self, wait: Duration) {
        self.0.store(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// The calls of one machine. The thread that makes a call marks its begin and its end; others ask for one that does not
/// return.
///
/// A rollback writes thousands of pages in the pause, so a call reads no clock: the time counts from when somebody
/// asked first.
pub(crate) struct DriverCalls {
    wait: CallWait,
    /// The number of the newest call, and which one it is in the lowest bits: 0 while there is none under way.
    now: AtomicU64,
    /// What `now` was when it was asked for last, and since when it is that.
    seen: Mutex<(u64, Instant)>,
}

/// A call under way, until this is dropped.
pub(crate) struct UnderWay<'a>(&'a DriverCalls);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let now = self.0.now.load(Ordering::Relaxed);
        self.0.now.store(now >> CALL_BITS << CALL_BITS, Ordering::Relaxed);
    }
}

impl DriverCalls {
    pub(crate) fn new(wait: CallWait) -> Self {
        Self { wait, now: AtomicU64::new(0), seen: Mutex::new((0, Instant::now())) }
    }

    /// A call begins. One thread at a time has the machine, so that no two begin at once.
    pub(crate) fn begin(&self, call: Call) -> UnderWay<'_> {
        let number = (self.now.load(Ordering::Relaxed) >> CALL_BITS) + 1;
        self.now.store(number << CALL_BITS | call as u64, Ordering::Relaxed);
        UnderWay(self)
    }

    /// Why the machine does not answer, in words, if a call has been under way for too long.
    pub(crate) fn overdue(&self) -> Option<String> {
        let now = self.now.load(Ordering::Relaxed);
        let under_way = now & ((1 << CALL_BITS) - 1);
        let call = Call::ALL.into_iter().find(|call| *call as u64 == under_way)?;
        // Both fields are written together.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != now {
            *seen = (now, Instant::now());
        }
        let waited = seen.1.elapsed();
        let is_overdue = waited >= self.wait.get();
        is_overdue.then(|| format!("the driver's call {call:?} has not returned for {} s", waited.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_found_by_its_number() {
        for (place, call) in Call::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, place + 1, "{call:?}");
        }
    }

    #[test]
    fn only_a_call_that_does_not_return_in_time_is_overdue() {
        let wait = CallWait::default();
        let calls = DriverCalls::new(wait.clone());
        assert_eq!(calls.overdue(), None);
        let first = calls.begin(Call::Pause);
        assert_eq!(calls.overdue(), None);
        wait.set(Duration::ZERO);
        assert!(calls.overdue().unwrap().contains("Pause"));
        drop(first);
        assert_eq!(calls.overdue(), None);
        wait.set(Duration::from_mins(1));
        // Each call has the whole time.
        let _second = calls.begin(Call::Pause);
        assert_eq!(calls.overdue(), None);
    }

    #[test]
    fn a_call_that_panics_has_returned() {
        let wait = CallWait::default();
        wait.set(Duration::ZERO);
        let calls = DriverCalls::new(wait);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _call = calls.begin(Call::Resume);
            panic!("the driver panics");
        }));
        panicked.unwrap_err();
        assert_eq!(calls.overdue(), None);
    }
}
