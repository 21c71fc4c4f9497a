use std::ops::Range;

use retrovisor_guest::{Gfn, MemoryView, PAGE_SIZE, PageToken, ZERO_PAGE};

use super::patching::{LawfulSites, Probed};
use crate::{pages::Pages, probe::Probe};

/// The kernel's code as it stood in the first observation of a boot.
pub(crate) struct TextReference {
    range: Range<u64>,
    first_gfn: Gfn,
    frames: Vec<Frame>,
    sites: LawfulSites,
}

struct Frame {
    token: Option<PageToken>,
    /// `None` when it could not be read then: nothing to compare with.
    bytes: Option<Box<[u8; PAGE_SIZE]>>,
}

/// How the code differs from the reference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TextChanges {
    /// Frames that differ, lawfully or not.
    pub(crate) frames: u64,
    /// Changes that no table of the kernel explains: address, bytes before, bytes now; joined to runs.
    pub(crate) unexplained: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) virt: u64,
    pub(crate) before: Vec<u8>,
    pub(crate) now: Vec<u8>,
}

/// Runs of changed bytes told one by one; more only count as changed frames.
const CHANGES_MAX: usize = 256;
/// Changed bytes this near belong to one run.
const GAP: usize = 4;

impl TextReference {
    pub(crate) fn take(probe: &Probe) -> Option<Self> {
        let range = probe.kernel.text();
        let first_gfn = probe.kernel.image_gpa(range.start)?.gfn();
        let count = (range.end - range.start).div_ceil(PAGE_SIZE as u64);
        let pages = probe.reader.pages();
        let mut page = ZERO_PAGE;
        let frames = gfns(first_gfn, count).map(|gfn| {
            let bytes = pages.read_into(gfn, &mut page).map(|()| Box::new(page));
            Frame { token: pages.view().token(gfn), bytes }
        });
        let frames = frames.collect();
        Some(Self { range, first_gfn, frames, sites: LawfulSites::read(probe) })
    }

    /// Frames of code.
    pub(crate) fn frame_count(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Compares the code of today. Frames whose token is the reference's are not read.
    pub(crate) fn compare(&self, probe: &Probe) -> TextChanges {
        let pages: &Pages = probe.reader.pages();
        let view: &dyn MemoryView = pages.view();
        let (mut changes, mut page, mut probed) = (TextChanges::default(), ZERO_PAGE, None);
        for ((gfn, frame), at) in gfns(self.first_gfn, self.frame_count())
            .zip(&self.frames)
            .zip((self.range.start..).step_by(PAGE_SIZE))
        {
            let same = frame.token.is_some() && frame.token == view.token(gfn);
            let Some(before) = frame.bytes.as_deref().filter(|_| !same) else { continue };
            if pages.read_into(gfn, &mut page).is_none() || page == *before {
                continue;
            }
            changes.frames += 1;
            let probed = probed.get_or_insert_with(|| Probed::read(probe));
            for run in runs(before, &page) {
                let (virt, before, now) = (at + run.start as u64, &before[run.clone()], &page[run]);
                if virt < self.range.end && changes.unexplained.len() < CHANGES_MAX {
                    let change = Change { virt, before: before.to_vec(), now: now.to_vec() };
                    if !self.sites.explain(probe, change.virt, &change.now, probed) {
                        changes.unexplained.push(change);
                    }
                }
            }
        }
        changes
    }
}

fn gfns(first: Gfn, count: u64) -> impl Iterator<Item = Gfn> {
    (first.0..first.0.saturating_add(count)).map(Gfn)
}

/// The ranges in which two pages differ, near ones joined.
fn runs(before: &[u8; PAGE_SIZE], now: &[u8; PAGE_SIZE]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for at in (0..PAGE_SIZE).filter(|at| before[*at] != now[*at]) {
        match runs.last_mut() {
            Some(run) if at - run.end < GAP => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_changes_are_one_run() {
        let (before, mut now) = (ZERO_PAGE, ZERO_PAGE);
        for at in [0, 3, 100, 4095] {
            now[at] = 1;
        }
        assert_eq!(runs(&before, &now), [0..4, 100..101, 4095..4096]);
    }
}
