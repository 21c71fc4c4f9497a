//! A second client that does what it likes to one of the machines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Random;
use crate::world::{RAN, run};

const COMMANDS: [&[&str]; 7] = [
    &["checkpoint", RAN],
    &["rollback", RAN, "--to", "-1"],
    &["undo", RAN],
    &["redo", RAN],
    &["pause", RAN],
    &["resume", RAN],
    &["inspect", RAN, "tasks"],
];

/// The second client while it works.
pub(crate) struct Rivals {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<(u32, u32)>,
}

/// Starts it.
pub(crate) fn start(store: PathBuf, seed: u64) -> Rivals {
    let ended = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let ended = Arc::clone(&ended);
        move || work(&store, Random::new(seed), &ended)
    });
    Rivals { ended, thread }
}

impl Rivals {
    /// Ends it. Returns how many commands it ran, and how many of them were refused.
    pub(crate) fn stop(self) -> (u32, u32) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("the second client")
    }
}

fn work(store: &Path, mut random: Random, ended: &AtomicBool) -> (u32, u32) {
    let (mut count, mut refused) = (0, 0);
    while !ended.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(500 + random.below(4000) as u64));
        let arguments = random.pick(&COMMANDS).expect("a command");
        let (code, stdout, stderr) = run(store, arguments);
        // The daemon may be killed at any time, and another client may have been faster.
        assert!([0, 1, 3, 4].contains(&code), "{arguments:?}: {code}\n{stdout}\n{stderr}");
        count += 1;
        refused += u32::from(code != 0);
    }
    (count, refused)
}
