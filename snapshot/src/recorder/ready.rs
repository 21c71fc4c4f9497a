use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use retrovisor_guest::{Gfn, MemoryLayout, Page, PageSet};

use super::report::CheckpointTiming;
use super::staging::{Staged, StagedContent, StagedFrame};
use super::stand::Stand;
use super::task::Capture;
use crate::catalogue::{Keyframe, NewCheckpoint, StoredState};
use crate::clock::since_us;
use crate::content::{ContentId, ContentRef};
use crate::disk::{DiskReady, DiskStands};
use crate::error::{Error, Result};
use crate::id::MachineId;
use crate::intake::{Intake, Progress};
use crate::page_map::PageMap;
use crate::store::{Store, keyframe, store_state};

/// A full map is stored after so many checkpoints,
pub(crate) const KEYFRAME_DISTANCE: u64 = 64;
/// or once the changes since the last one outnumber the pages of the machine (but not before this many): whichever
/// comes first bounds what reading a map costs.
pub(crate) const KEYFRAME_ROWS_MIN: u64 = 1 << 14;
/// Frames of a capture that is not complete yet.
pub(super) struct Open<'s> {
    pub(super) intake: MutexGuard<'s, Intake>,
    /// What stands in the frames taken in so far.
    frames: Vec<(u32, ContentRef)>,
    before: Progress,
    pub(super) spoiled: Option<Error>,
}

/// A capture taken in: all that the catalogue will be told.
pub(super) struct Ready {
    pub(super) capture: Capture,
    pub(super) map: Arc<PageMap>,
    pub(super) changes: Vec<(Gfn, ContentRef)>,
    /// What stood in the changed frames before.
    pub(super) replaced: Vec<ContentId>,
    pub(super) state: StoredState,
    pub(super) keyframe: Option<Keyframe>,
    pub(super) disks: Vec<DiskReady>,
    pub(super) checkpoint: NewCheckpoint,
}

/// Where the next checkpoint of a group hangs.
pub(super) struct Tip {
    map: Arc<PageMap>,
    is_first: bool,
    keyframe_distance: u64,
    keyframe_rows: u64,
    disks: DiskStands,
}

impl Tip {
    /// Where the machine stands.
    pub(super) fn at(stand: &Stand) -> Self {
        Self {
            map: Arc::clone(&stand.map),
            is_first: stand.position.is_none(),
            keyframe_distance: stand.keyframe_distance,
            keyframe_rows: stand.keyframe_rows,
            disks: stand.disks.clone(),
        }
    }
}

impl<'s> Open<'s> {
    /// Nothing came in yet. Nobody else brings contents in until this is gone.
    pub(super) fn begin(store: &'s Store) -> Result<Self> {
        let intake = store.intake()?;
        let before = intake.so_far();
        Ok(Self { intake, frames: Vec::new(), before, spoiled: None })
    }

    /// Takes frames in, and notes what stands in each. Their pages go to the undo ring as well.
    pub(super) fn take_in(&mut self, store: &Store, staged: &[Staged], layout: &MemoryLayout) -> Result<()> {
        let frames = latest(staged, layout);
        let pages: Vec<&Page> = frames
            .iter()
            .filter_map(|(part, frame)| match frame.content {
                StagedContent::Data(place) => Some(part.page(place)),
                StagedContent::Zero | StagedContent::Removed => None,
            })
            .collect();
        let names = self.intake.add(&store.key, store.catalogue(), &pages)?;
        keep(store, &names, &pages);
        let mut names = names.into_iter();
        self.frames.extend(frames.iter().map(|(_, frame)| {
            let content = match frame.content {
                StagedContent::Zero => ContentRef::Zero,
                StagedContent::Removed => ContentRef::Removed,
                StagedContent::Data(_) => names.next().unwrap_or(ContentRef::Zero),
            };
            (frame.index, content)
        }));
        Ok(())
    }

    /// Takes one capture in.
    #[expect(clippy::result_large_err, reason = "the capture goes back")]
    pub(super) fn ready(
        &mut self,
        store: &Store,
        machine: MachineId,
        layout: &MemoryLayout,
        tip: &mut Tip,
        mut capture: Capture,
    ) -> Result<Ready, (Error, Capture)> {
        let staged = std::mem::take(&mut capture.staged);
        let taken = self.take_in(store, &staged, layout).and_then(|()| {
            store_state(&store.key, &capture.state, |pages| {
                let names = self.intake.add(&store.key, store.catalogue(), pages)?;
                keep(store, &names, pages);
                Ok(names)
            })
        });
        drop(staged);
        let state = match taken {
            Ok(state) => state,
            Err(error) => return Err((error, capture)),
        };
        let start = Instant::now();
        let mut drafts = std::mem::take(&mut capture.disks);
        let disks = drafts
            .iter_mut()
            .map(|draft| DiskReady::take_in(store, &mut self.intake, machine, &tip.disks, draft));
        let disks = match disks.collect::<Result<Vec<_>>>() {
            Ok(disks) => disks,
            Err(error) => return Err((error, capture)),
        };
        capture.timing.disk_us = if disks.is_empty() { 0 } else { since_us(start) };
        let mut map = (*tip.map).clone();
        for (index, content) in self.frames.drain(..) {
            map.set(index as usize, content);
        }
        let (mut changes, mut replaced) = (Vec::new(), Vec::new());
        // A first checkpoint stands by itself, also when it is known that its frames are those of another machine's.
        let nothing =
            tip.is_first.then(|| PageMap::zero(usize::try_from(layout.pages()).unwrap_or(usize::MAX)));
        for (index, old, new) in nothing.as_ref().unwrap_or(&tip.map).diff(&map) {
            changes.extend(layout.gfn(index as u64).map(|gfn| (gfn, new)));
            replaced.extend(old.stored());
        }
        let zero_pages = count_zero(&capture.dirty, &map);
        let (distance, rows) = (tip.keyframe_distance + 1, tip.keyframe_rows + changes.len() as u64);
        let is_key =
            tip.is_first || distance >= KEYFRAME_DISTANCE || rows > layout.pages().max(KEYFRAME_ROWS_MIN);
        let full = if is_key { keyframe(&store.key, &map).map(Some) } else { Ok(None) };
        let keyframe = match full {
            Ok(full) => full,
            Err(error) => return Err((error, capture)),
        };
        let (keyframe_distance, keyframe_rows) = if is_key { (0, 0) } else { (distance, rows) };
        let map = Arc::new(map);
        *tip = Tip {
            map: Arc::clone(&map),
            is_first: false,
            keyframe_distance,
            keyframe_rows,
            disks: disks.iter().map(|disk| (disk.stand.record.name.clone(), disk.stand.clone())).collect(),
        };
        let after = self.intake.so_far();
        let before = std::mem::replace(&mut self.before, after);
        note_times(&mut capture.timing, &before, &after);
        let checkpoint = NewCheckpoint {
            machine,
            label: capture.request.label.clone(),
            kind: capture.request.kind,
            taken_at_ms: capture.at_ms,
            pause_us: capture.timing.pause_us,
            dirty_pages: capture.dirty.len(),
            changed_pages: changes.len() as u64,
            new_pages: after.contents - before.contents,
            zero_pages,
            stored_bytes: after.stored_bytes - before.stored_bytes,
            keyframe_distance,
            keyframe_rows,
        };
        Ok(Ready { capture, map, changes, replaced, state, keyframe, disks, checkpoint })
    }
}

/// The newest copy of every frame.
pub(super) fn latest<'a>(staged: &'a [Staged], layout: &MemoryLayout) -> Vec<(&'a Staged, StagedFrame)> {
    let mut newest = Vec::with_capacity(staged.iter().map(|part| part.frames().len()).sum());
    if let [only] = staged {
        newest.extend(only.frames().iter().map(|frame| (only, *frame)));
        return newest;
    }
    let mut seen = PageSet::empty(layout);
    for part in staged.iter().rev() {
        let new = part.frames().iter().filter(|frame| seen.insert_index(u64::from(frame.index)));
        newest.extend(new.map(|frame| (part, *frame)));
    }
    newest
}

fn count_zero(dirty: &PageSet, map: &PageMap) -> u64 {
    let is_zero = |index: &u64| {
        let content = usize::try_from(*index).map_or(ContentRef::Zero, |index| map.get(index));
        matches!(content, ContentRef::Zero | ContentRef::Removed)
    };
    dirty.indices().filter(is_zero).count() as u64
}

/// Adds the times between two instants of the intake.
pub(super) fn note_times(timing: &mut CheckpointTiming, before: &Progress, after: &Progress) {
    let (before, after) = (before.timing, after.timing);
    timing.hash_us += after.hash_us - before.hash_us;
    timing.dedupe_us += after.dedupe_us - before.dedupe_us;
    timing.compress_us += after.compress_us - before.compress_us;
    timing.write_us += after.write_us - before.write_us;
    timing.sync_us += after.sync_us - before.sync_us;
}

/// Puts pages into the undo ring.
fn keep(store: &Store, names: &[ContentRef], pages: &[&Page]) {
    store.cache.fill(names.iter().zip(pages).filter_map(|(name, page)| Some((name.stored()?, *page))));
}
