use crossbeam_channel::Sender;
use retrovisor_guest::{Gfn, MemoryError, MemoryView, Page, PageSet};

use crate::recorder::staging::AlignedPage;

/// The contents of a frame in the pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Zero,
    /// The page, by its place in the buffer.
    Data(usize),
}

/// Copies of frames. All of its memory is allocated, and touched, when it is made.
pub(super) struct Sample {
    frames: Vec<(u64, Found)>,
    frames_max: usize,
    pages: Box<[AlignedPage]>,
    used: usize,
}

impl Sample {
    /// Empty, for this many frames.
    pub(super) fn new(frames_max: usize) -> Self {
        let pages = vec![AlignedPage::touched(); frames_max].into_boxed_slice();
        Self { frames: Vec::with_capacity(frames_max), frames_max, pages, used: 0 }
    }

    /// Removes all copies.
    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.used = 0;
    }

    /// Whether there is no memory for another frame.
    pub(super) fn is_full(&self) -> bool {
        self.frames.len() >= self.frames_max
    }

    /// Copies a frame. Allocates nothing. `may_be_hole`: the driver is asked first whether the frame is known to be
    /// zero, because reading a hole would fill it; where that is unlikely, the question costs more than it saves.
    pub(super) fn copy(
        &mut self,
        view: &dyn MemoryView,
        index: u64,
        may_be_hole: bool,
    ) -> Result<(), MemoryError> {
        let Some(gfn) = view.layout().gfn(index).filter(|_| !self.is_full()) else { return Ok(()) };
        let is_zero =
            may_be_hole && is_hole(view, gfn) || view.read_nontemporal(gfn, &mut self.pages[self.used].0)?;
        let found = if is_zero {
            Found::Zero
        } else {
            self.used += 1;
            Found::Data(self.used - 1)
        };
        self.frames.push((index, found));
        Ok(())
    }

    /// Frames that were copied.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// The index of each frame, and what it held: `None` for zeros.
    pub(super) fn frames(&self) -> impl Iterator<Item = (u64, Option<&Page>)> {
        self.frames.iter().map(|(index, found)| match found {
            Found::Zero => (*index, None),
            Found::Data(place) => (*index, Some(&self.pages[*place].0)),
        })
    }
}

fn is_hole(view: &dyn MemoryView, gfn: Gfn) -> bool {
    view.removed(gfn) || view.known_zero(gfn)
}

/// A sample in use, whose memory is used again when this is dropped.
pub(super) struct SampleInUse {
    /// None only once this is being dropped.
    sample: Option<Box<Sample>>,
    idle: Sender<Box<Sample>>,
}

impl SampleInUse {
    /// Sends the sample to `idle` in the end.
    pub(super) fn new(sample: Box<Sample>, idle: Sender<Box<Sample>>) -> Self {
        Self { sample: Some(sample), idle }
    }

    /// The sample.
    pub(super) fn get(&self) -> Option<&Sample> {
        self.sample.as_deref()
    }

    /// The sample, to be filled.
    pub(super) fn get_mut(&mut self) -> Option<&mut Sample> {
        self.sample.as_deref_mut()
    }
}

impl Drop for SampleInUse {
    fn drop(&mut self) {
        if let Some(sample) = self.sample.take() {
            // The recorder may be gone.
            let _ = self.idle.send(sample);
        }
    }
}

/// The audit's data of a capture.
pub(in crate::recorder) struct Sampled {
    /// Frames that were not copied for the checkpoint.
    pub(super) sample: SampleInUse,
    /// Frames that were copied for the checkpoint in the pause: they are exact in it, whatever the driver reported.
    pub(super) copied: PageSet,
    /// The positions of the walk that are covered.
    pub(in crate::recorder) from: u64,
    pub(in crate::recorder) to: u64,
}
