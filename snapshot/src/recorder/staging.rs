use retrovisor_guest::{MemoryError, MemoryView, Page, ZERO_PAGE, is_zero};

/// Pages allocated at a time: 1 MiB.
const CHUNK: usize = 256;
/// Pages whose memory is kept from one checkpoint to the next: 64 MiB. Warm memory makes the copy fast.
const KEPT: usize = 1 << 14;

/// Dirty frames copied aside while the guest stands still.
#[derive(Default)]
pub(super) struct Staging {
    chunks: Vec<Box<[Page]>>,
    used: usize,
    frames: Vec<StagedFrame>,
}

/// One frame that was dirty.
#[derive(Clone, Copy, Debug)]
pub(super) struct StagedFrame {
    pub(super) index: usize,
    pub(super) content: StagedContent,
}

/// What stood in it.
#[derive(Clone, Copy, Debug)]
pub(super) enum StagedContent {
    Zero,
    Removed,
    /// The page, by its place here.
    Data(usize),
}

impl Staging {
    /// Copies frames, given by ascending index. Zeros take no room.
    pub(super) fn fill(
        &mut self,
        view: &dyn MemoryView,
        indices: impl Iterator<Item = u64>,
    ) -> Result<(), MemoryError> {
        self.clear();
        let layout = view.layout();
        for index in indices {
            let (Some(gfn), Ok(index)) = (layout.gfn(index), usize::try_from(index)) else { continue };
            let content = if view.removed(gfn) {
                StagedContent::Removed
            } else if view.known_zero(gfn) {
                StagedContent::Zero
            } else {
                let slot = self.used;
                let page = self.slot(slot);
                view.read_page(gfn, page)?;
                // Ends at the first byte that is not zero, mostly: cheap enough to be done within the pause.
                if is_zero(page) {
                    StagedContent::Zero
                } else {
                    self.used += 1;
                    StagedContent::Data(slot)
                }
            };
            self.frames.push(StagedFrame { index, content });
        }
        Ok(())
    }

    /// The frames, by ascending index.
    pub(super) fn frames(&self) -> &[StagedFrame] {
        &self.frames
    }

    /// The pages that hold data, in the order of the frames that do.
    pub(super) fn data(&self) -> Vec<&Page> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).take(self.used).collect()
    }

    /// Empties it, and gives back memory beyond what is kept.
    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.frames.clear();
        self.chunks.truncate(KEPT / CHUNK);
    }

    fn slot(&mut self, slot: usize) -> &mut Page {
        while self.chunks.len() <= slot / CHUNK {
            self.chunks.push(vec![ZERO_PAGE; CHUNK].into_boxed_slice());
        }
        &mut self.chunks[slot / CHUNK][slot % CHUNK]
    }
}
