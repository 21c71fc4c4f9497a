use std::sync::atomic::{AtomicU64, Ordering};

/// The amount of data read from a store since it was opened, in units that do not depend on the load of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Frames read from packs and decompressed.
    pub frames: u64,
    /// Links of chains read for page maps.
    pub links: u64,
    /// Changed pages read for page maps.
    pub changes: u64,
    /// Full page maps read.
    pub keyframes: u64,
}

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct ReadCounter {
    frames: AtomicU64,
    links: AtomicU64,
    changes: AtomicU64,
    keyframes: AtomicU64,
}

impl ReadCounter {
    /// Adds to the count.
    pub(crate) fn add(&self, more: Reads) {
        for (count, more) in [
            (&self.frames, more.frames),
            (&self.links, more.links),
            (&self.changes, more.changes),
            (&self.keyframes, more.keyframes),
        ] {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// The count so far.
    pub(crate) fn progress(&self) -> Reads {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Reads {
            frames: read(&self.frames),
            links: read(&self.links),
            changes: read(&self.changes),
            keyframes: read(&self.keyframes),
        }
    }
}
