//! A disk that is full, or fails, at any moment: from each call on that could need space, until space comes back; and
//! each call once. The process continues, the guest runs on, nothing that was committed is lost, and the next attempt
//! succeeds and has all writes of the guest meanwhile.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;

use super::check::{Expected, check};
use super::story::Mark;
use super::trace::{self, Event, Failing};
use crate::toy::quick_dir;

const SEED: u64 = 11;
const STEPS: u64 = 5;

/// Every message of a full disk has a next step. (SQLite does not report why a sync failed.)
fn is_clear(message: &str, errno: Errno) -> bool {
    let full = message.contains("no space left") && message.contains("Free some space");
    // Captures behind the failed one report that.
    let behind = message.contains("an earlier one could not be stored");
    errno != Errno::ENOSPC || full || behind || message.contains("has free space")
}

/// Runs the history with a failure; whether it was reached.
fn fails_well(failing: Failing) -> Option<bool> {
    let dir = quick_dir();
    let trace = trace::run(dir.path(), SEED, STEPS, Some(failing))?;
    assert!(trace.success, "{failing:?}: the child failed:\n{}", trace.output);
    let mut expected = Expected::default();
    for event in &trace.events {
        let Event::Mark(mark) = event else { continue };
        expected.hear(mark);
        if let Mark::Failed(_, message) | Mark::Refused(message) = mark {
            assert!(is_clear(message, failing.errno), "{failing:?}: {message}");
        }
    }
    assert!(!expected.done.is_empty());
    check(&dir.path().join("store"), &expected, SEED);
    Some(trace.failed > 0)
}

/// Fails each call in turn, until there is none left to fail.
fn fail_each(errno: Errno, lasting: bool, half: bool) {
    let (next, done) = (AtomicUsize::new(1), AtomicBool::new(false));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    let failing = Failing { nth, lasting, half, errno };
                    match std::panic::catch_unwind(|| fails_well(failing)) {
                        Ok(Some(reached)) => done.fetch_or(!reached, Ordering::Relaxed),
                        Ok(None) => {
                            eprintln!("SKIPPED: processes cannot be traced here (ptrace is forbidden)");
                            done.fetch_or(true, Ordering::Relaxed)
                        }
                        Err(_) => {
                            let mut failures = failures.lock().unwrap();
                            failures.push(nth);
                            done.fetch_or(failures.len() > 20, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    eprintln!("{errno}: {} calls", next.into_inner());
    assert!(failures.is_empty(), "these calls, when they fail, do harm: {failures:?}");
}

#[test]
fn a_disk_that_is_full_from_any_call_on_loses_nothing() {
    fail_each(Errno::ENOSPC, true, true);
}

#[test]
fn any_call_that_fails_once_loses_nothing() {
    fail_each(Errno::EIO, false, false);
}
