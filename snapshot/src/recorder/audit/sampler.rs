use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use retrovisor_guest::{MemoryView, PageSet};

use super::sample::{Sample, SampleInUse, Sampled};
use super::status::{AuditState, SharedAudit};
use super::walk::Walk;
use crate::mutex::lock;
use crate::page_map::PageMap;

/// Samples in use at a time, at most. A capture beyond that is not audited: captures follow one another faster than
/// they are stored.
const SAMPLES_MAX: usize = 8;
/// Frames in a sample, at most: 16 MiB.
const FRAMES_MAX: usize = 4096;
/// Frames listed before the pause for each one that is copied in it: some of them will turn out to be dirty.
const LISTED: usize = 2;

/// Chooses frames and copies them in the pause.
pub(in crate::recorder) struct Sampler {
    /// Frames to copy at each capture. 0: none.
    frames: usize,
    walk: Walk,
    /// The next position of the walk.
    position: u64,
    samples_made: usize,
    idle: Receiver<Box<Sample>>,
    give_back: Sender<Box<Sample>>,
    shared: SharedAudit,
}

/// A capture's part of the audit, before its pause.
pub(in crate::recorder) struct OpenSample {
    sample: SampleInUse,
    /// The next frames of the walk, and whether each may be a hole.
    listed: Vec<(u64, bool)>,
    /// How many of them were looked at.
    taken: u64,
}

impl Sampler {
    /// A sampler that copies this many frames at each capture.
    pub(in crate::recorder) fn new(pages: u64, frames: u64, seed: u64, shared: SharedAudit) -> Self {
        let (give_back, idle) = unbounded();
        let frames = usize::try_from(frames.min(pages)).unwrap_or(usize::MAX).min(FRAMES_MAX);
        Self { frames, walk: Walk::new(pages, seed), position: 0, samples_made: 0, idle, give_back, shared }
    }

    /// What is known so far.
    pub(in crate::recorder) fn state(&self) -> std::sync::MutexGuard<'_, AuditState> {
        lock(&self.shared)
    }

    /// What is known so far, to be shared.
    pub(in crate::recorder) fn shared(&self) -> SharedAudit {
        Arc::clone(&self.shared)
    }

    /// Frames to copy at each capture.
    pub(in crate::recorder) fn frames(&self) -> u64 {
        self.frames as u64
    }

    /// Before the pause: lists the next frames, and provides the memory for their copies. `map` says, about, what they
    /// hold.
    pub(in crate::recorder) fn open(&mut self, map: &PageMap) -> Option<OpenSample> {
        if self.frames == 0 {
            return None;
        }
        let mut sample = match self.idle.try_recv() {
            Ok(sample) => sample,
            Err(_) if self.samples_made < SAMPLES_MAX => {
                self.samples_made += 1;
                Box::new(Sample::new(self.frames))
            }
            Err(_) => return None,
        };
        sample.clear();
        let listed = (self.position..).take(self.frames * LISTED).map(|position| {
            let index = self.walk.index(position);
            let content = usize::try_from(index).map(|index| map.get(index)).ok();
            (index, content.is_none_or(|content| content.stored().is_none()))
        });
        let listed = listed.collect();
        let sample = SampleInUse::new(sample, self.give_back.clone());
        Some(OpenSample { sample, listed, taken: 0 })
    }

    /// After the resume: what was copied. `copied` are the frames that were copied for the checkpoint in the pause.
    pub(in crate::recorder) fn close(&self, open: OpenSample, copied: PageSet) -> Sampled {
        Sampled { sample: open.sample, copied, from: self.position, to: self.position + open.taken }
    }

    /// The walk continues from here: a capture was submitted, or one that was submitted could not be stored.
    pub(in crate::recorder) fn go_to(&mut self, position: u64) {
        self.position = position;
    }

    /// The next position of the walk.
    pub(in crate::recorder) fn position(&self) -> u64 {
        self.position
    }
}

impl OpenSample {
    /// In the pause: copies listed frames, but those in `copied`, which were copied for the checkpoint. Allocates
    /// nothing. What cannot be read is passed over.
    pub(in crate::recorder) fn fill(&mut self, view: &dyn MemoryView, copied: &PageSet) {
        let Some(sample) = self.sample.get_mut() else { return };
        for (index, may_be_hole) in &self.listed {
            if sample.is_full() {
                break;
            }
            self.taken += 1;
            if !copied.contains_index(*index)
                && let Err(error) = sample.copy(view, *index, *may_be_hole)
            {
                tracing::warn!(index, %error, "a frame could not be read for the audit");
            }
        }
    }
}
