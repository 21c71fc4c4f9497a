use std::sync::{Arc, Condvar, Mutex};

use retrovisor_guest::{MemoryError, MemoryView, Page, PageSet};

use crate::mutex::lock;

/// Pages taken from the pool at a time: 256 KiB.
pub(super) const CHUNK: usize = 64;
/// Bound on the memory that is kept touched between captures: 64 MiB.
const IDLE_MAX: usize = (64 << 20) / (CHUNK * size_of::<Page>());

type Chunk = Box<[AlignedPage]>;

/// A page aligned to a cache line, so that it can be copied with non-temporal stores.
#[derive(Clone)]
#[repr(align(64))]
pub(super) struct AlignedPage(pub(super) Page);

impl AlignedPage {
    /// Not zeros, which the host would allocate only at the first access.
    pub(super) fn touched() -> Self {
        Self([1; size_of::<Page>()])
    }
}

/// The memory into which captures copy, within a budget of bytes. The memory of a capture is returned once it is
/// stored.
pub(super) struct Pool {
    chunks_max: usize,
    state: Mutex<State>,
    given_back: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Chunk>,
    out: usize,
    out_peak: usize,
}

impl Pool {
    /// A pool of this many bytes at most, but never less than two chunks.
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        let chunks = usize::try_from(bytes_max).unwrap_or(usize::MAX) / (CHUNK * size_of::<Page>());
        Arc::new(Self { chunks_max: chunks.max(2), state: Mutex::default(), given_back: Condvar::new() })
    }

    /// Chunks in all.
    pub(super) fn chunks_max(&self) -> usize {
        self.chunks_max
    }

    /// Bytes in use now, in use at most so far, and allowed.
    pub(super) fn bytes(&self) -> (u64, u64, u64) {
        let state = lock(&self.state);
        let bytes = |chunks: usize| (chunks * CHUNK * size_of::<Page>()) as u64;
        (bytes(state.out), bytes(state.out_peak), bytes(self.chunks_max))
    }

    /// Waits until this many chunks can be taken, and makes them warm: touched, so that copying into them within a
    /// pause costs no page faults.
    pub(super) fn reserve(&self, chunks: usize) {
        let chunks = chunks.min(self.chunks_max);
        let mut state = lock(&self.state);
        while self.chunks_max.saturating_sub(state.out) < chunks {
            state = wait(&self.given_back, state);
        }
        while state.idle.len() < chunks {
            state.idle.push(new_chunk());
        }
    }

    /// Waits until at most this many chunks are taken.
    pub(super) fn wait_until_out(&self, out_max: usize) {
        let mut state = lock(&self.state);
        while state.out > out_max {
            state = wait(&self.given_back, state);
        }
    }

    /// A chunk, unless `out_max` are taken already.
    pub(super) fn try_take(&self, out_max: usize) -> Option<Chunk> {
        let mut state = lock(&self.state);
        if state.out >= out_max.min(self.chunks_max) {
            return None;
        }
        state.out += 1;
        state.out_peak = state.out_peak.max(state.out);
        Some(state.idle.pop().unwrap_or_else(new_chunk))
    }

    /// A chunk, as soon as fewer than `out_max` are taken.
    pub(super) fn take(&self, out_max: usize) -> Chunk {
        loop {
            if let Some(chunk) = self.try_take(out_max) {
                return chunk;
            }
            let state = lock(&self.state);
            if state.out >= out_max.min(self.chunks_max) {
                drop(wait(&self.given_back, state));
            }
        }
    }

    /// A chunk at once, beyond the budget if there is none left: for a guest that is paused.
    pub(super) fn take_over_budget(&self) -> Chunk {
        self.try_take(usize::MAX).unwrap_or_else(|| {
            let mut state = lock(&self.state);
            state.out += 1;
            state.out_peak = state.out_peak.max(state.out);
            state.idle.pop().unwrap_or_else(new_chunk)
        })
    }

    fn give(&self, chunks: &mut Vec<Chunk>) {
        let mut state = lock(&self.state);
        state.out -= chunks.len();
        let room = IDLE_MAX.saturating_sub(state.idle.len());
        state.idle.extend(chunks.drain(..chunks.len().min(room)));
        drop(state);
        self.given_back.notify_all();
    }
}

fn wait<'a>(signal: &Condvar, guard: std::sync::MutexGuard<'a, State>) -> std::sync::MutexGuard<'a, State> {
    signal.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn new_chunk() -> Chunk {
    vec![AlignedPage::touched(); CHUNK].into_boxed_slice()
}

/// Copies of dirty frames. Their memory goes back to the pool when they are dropped.
pub(super) struct Staged {
    pool: Arc<Pool>,
    chunks: Vec<Chunk>,
    used: usize,
    frames: Vec<StagedFrame>,
}

/// One frame that was dirty.
#[derive(Clone, Copy, Debug)]
pub(super) struct StagedFrame {
    pub(super) index: u32,
    pub(super) content: StagedContent,
}

/// What it held.
#[derive(Clone, Copy, Debug)]
pub(super) enum StagedContent {
    Zero,
    Removed,
    /// The page, by its place here.
    Data(u32),
}

impl Staged {
    /// Empty, with capacity for the list of this many frames.
    pub(super) fn new(pool: &Arc<Pool>, frames: usize) -> Self {
        Self { pool: Arc::clone(pool), chunks: Vec::new(), used: 0, frames: Vec::with_capacity(frames) }
    }

    /// Copies the frames of `set`. Zeros take no memory. When a chunk is used up, `more` returns the next one: it
    /// receives what is staged so far, and may submit that.
    pub(super) fn fill(
        &mut self,
        view: &dyn MemoryView,
        set: &PageSet,
        mut more: impl FnMut(&mut Self) -> Chunk,
    ) -> Result<(), MemoryError> {
        let layout = view.layout();
        // To ask costs a call of the driver. A frame that was written is no hole; so many frames are dirty only if the
        // memory was not read before.
        let has_holes = set.len() > layout.pages() / 4;
        for index in set.indices() {
            let (Some(gfn), Ok(index)) = (layout.gfn(index), u32::try_from(index)) else { continue };
            let content = if view.removed(gfn) {
                StagedContent::Removed
            } else if has_holes && view.known_zero(gfn) {
                StagedContent::Zero
            } else {
                if self.used == self.chunks.len() * CHUNK {
                    let chunk = more(self);
                    self.chunks.push(chunk);
                }
                let AlignedPage(page) = &mut self.chunks[self.used / CHUNK][self.used % CHUNK];
                if view.read_nontemporal(gfn, page)? {
                    StagedContent::Zero
                } else {
                    self.used += 1;
                    #[expect(clippy::cast_possible_truncation, reason = "no more pages than frames")]
                    StagedContent::Data(self.used as u32 - 1)
                }
            };
            self.frames.push(StagedFrame { index, content });
        }
        Ok(())
    }

    /// Takes out what is staged so far, to be sent away.
    pub(super) fn split(&mut self) -> Self {
        let rest = Self::new(&self.pool, 0);
        std::mem::replace(self, rest)
    }

    /// Chunks in use.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The frames, by ascending index.
    pub(super) fn frames(&self) -> &[StagedFrame] {
        &self.frames
    }

    /// The page at a place.
    pub(super) fn page(&self, place: u32) -> &Page {
        &self.chunks[place as usize / CHUNK][place as usize % CHUNK].0
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.pool.give(&mut self.chunks);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_wants_more_than_the_budget_waits() {
        let pool = Pool::new((4 * CHUNK * size_of::<Page>()) as u64);
        let mut held = Staged::new(&pool, 0);
        for _ in 0..3 {
            held.chunks.push(pool.take(4));
        }
        assert!(pool.try_take(3).is_none(), "three are out");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.reserve(2));
            thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            drop(held);
            waiting.join().unwrap();
        });
        let chunk = (CHUNK * size_of::<Page>()) as u64;
        assert_eq!(pool.bytes(), (0, 3 * chunk, 4 * chunk));
    }
}
