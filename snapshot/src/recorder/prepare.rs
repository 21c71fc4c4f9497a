use std::sync::Arc;
use std::time::Instant;

use retrovisor_guest::{Gfn, MemoryLayout, Page, PageSet};

use super::baseline::Baseline;
use super::report::CheckpointTiming;
use super::staging::{Staged, StagedContent, StagedFrame};
use super::task::Captured;
use crate::catalogue::{Keyframe, NewCheckpoint, StoredState};
use crate::clock::since_us;
use crate::content::{ContentId, ContentRef};
use crate::content_writer::{ContentWriter, Progress};
use crate::disk::{DiskBaselines, PreparedDisk};
use crate::error::{Error, Result};
use crate::fair_lock::FairGuard;
use crate::id::MachineId;
use crate::page_map::PageMap;
use crate::store::{Store, keyframe, store_state};

/// A full map is stored after this many checkpoints,
pub(crate) const KEYFRAME_DISTANCE: u64 = 64;
/// or once the changes since the last one outnumber the pages of the machine (but not before this many): whichever
/// comes first bounds what reading a map costs.
pub(crate) const KEYFRAME_ROWS_MIN: u64 = 1 << 14;

/// Captures whose contents are being written. Holds the content writer.
pub(super) struct Preparation<'s> {
    pub(super) content_writer: FairGuard<'s, ContentWriter>,
    /// The contents of the frames added so far.
    frames: Vec<(u32, ContentRef)>,
    before: Progress,
    /// Why the capture that the frames belong to cannot be stored.
    pub(super) failed: Option<Error>,
}

/// A captured instant whose contents are written: the rows for the catalogue.
pub(super) struct Prepared {
    pub(super) map: Arc<PageMap>,
    pub(super) changes: Vec<(Gfn, ContentRef)>,
    /// The contents that the changed frames had before.
    pub(super) replaced: Vec<ContentId>,
    pub(super) state: StoredState,
    pub(super) keyframe: Option<Keyframe>,
    pub(super) disks: Vec<PreparedDisk>,
    pub(super) checkpoint: NewCheckpoint,
}

/// The baseline of the next checkpoint of a group.
pub(super) struct Tip {
    map: Arc<PageMap>,
    is_first: bool,
    keyframe_distance: u64,
    keyframe_rows: u64,
    disks: DiskBaselines,
}

impl Tip {
    /// The first of a group is based on the baseline.
    pub(super) fn of(baseline: &Baseline) -> Self {
        Self {
            map: Arc::clone(&baseline.map),
            is_first: baseline.position.is_none(),
            keyframe_distance: baseline.keyframe_distance,
            keyframe_rows: baseline.keyframe_rows,
            disks: baseline.disks.clone(),
        }
    }
}

impl Prepared {
    /// The disks as they are at the checkpoint.
    pub(super) fn disk_baselines(&self) -> DiskBaselines {
        let disks = self.disks.iter();
        disks.map(|disk| (disk.baseline.record.name.clone(), disk.baseline.clone())).collect()
    }
}

impl<'s> Preparation<'s> {
    /// Takes the content writer, until this is dropped.
    pub(super) fn begin(store: &'s Store) -> Result<Self> {
        let content_writer = store.content_writer()?;
        let before = content_writer.progress();
        Ok(Self { content_writer, frames: Vec::new(), before, failed: None })
    }

    /// Adds frames and records the content of each. Their pages are added to the page cache as well.
    pub(super) fn add_frames(
        &mut self,
        store: &Store,
        staged: &[Staged],
        layout: &MemoryLayout,
    ) -> Result<()> {
        let frames = latest(staged, layout);
        let pages: Vec<&Page> = frames
            .iter()
            .filter_map(|(part, frame)| match frame.content {
                StagedContent::Data(place) => Some(part.page(place)),
                StagedContent::Zero | StagedContent::Removed => None,
            })
            .collect();
        let contents = self.content_writer.add(&store.key, store.catalogue(), &pages)?;
        cache_pages(store, &contents, &pages);
        let mut contents = contents.into_iter();
        self.frames.extend(frames.iter().map(|(_, frame)| {
            let content = match frame.content {
                StagedContent::Zero => ContentRef::Zero,
                StagedContent::Removed => ContentRef::Removed,
                StagedContent::Data(_) => contents.next().unwrap_or(ContentRef::Zero),
            };
            (frame.index, content)
        }));
        Ok(())
    }

    /// Prepares a captured instant, which is based on `tip`. The next one is based on it.
    pub(super) fn prepare(
        &mut self,
        store: &Store,
        machine: MachineId,
        layout: &MemoryLayout,
        tip: &mut Tip,
        captured: &mut Captured,
    ) -> Result<Prepared> {
        let staged = std::mem::take(&mut captured.staged);
        self.add_frames(store, &staged, layout)?;
        let state = store_state(&store.key, &captured.state, |pages| {
            let contents = self.content_writer.add(&store.key, store.catalogue(), pages)?;
            cache_pages(store, &contents, pages);
            Ok(contents)
        })?;
        drop(staged);
        let start = Instant::now();
        let disks = std::mem::take(&mut captured.disks)
            .iter_mut()
            .map(|disk| PreparedDisk::prepare(store, &mut self.content_writer, machine, &tip.disks, disk))
            .collect::<Result<Vec<_>>>()?;
        captured.timing.disk_us = if disks.is_empty() { 0 } else { since_us(start) };
        let mut map = (*tip.map).clone();
        for (index, content) in self.frames.drain(..) {
            map.set(index as usize, content);
        }
        let (mut changes, mut replaced) = (Vec::new(), Vec::new());
        // A first checkpoint has a full list of changes, even if its frames are known to be those of another machine.
        let nothing =
            tip.is_first.then(|| PageMap::zero(usize::try_from(layout.pages()).unwrap_or(usize::MAX)));
        for (index, old, new) in nothing.as_ref().unwrap_or(&tip.map).diff(&map) {
            changes.extend(layout.gfn(index as u64).map(|gfn| (gfn, new)));
            replaced.extend(old.stored());
        }
        let zero_pages = count_zero(&captured.dirty, &map);
        let was_first = tip.is_first;
        let (distance, rows) = (tip.keyframe_distance + 1, tip.keyframe_rows + changes.len() as u64);
        let is_key =
            tip.is_first || distance >= KEYFRAME_DISTANCE || rows > layout.pages().max(KEYFRAME_ROWS_MIN);
        let keyframe = if is_key { Some(keyframe(&store.key, &map)?) } else { None };
        let (keyframe_distance, keyframe_rows) = if is_key { (0, 0) } else { (distance, rows) };
        let after = self.content_writer.progress();
        let before = std::mem::replace(&mut self.before, after);
        note_times(&mut captured.timing, &before, &after);
        // Every frame is read where it is not known which were written: after an attach, after a mismatch of the audit.
        let is_read_whole = captured.dirty.len() == layout.pages() && !was_first;
        let dirty_pages = if is_read_whole { changes.len() as u64 } else { captured.dirty.len() };
        let checkpoint = NewCheckpoint {
            machine,
            label: captured.request.label.clone(),
            kind: captured.request.kind,
            taken_at_ms: captured.at_ms,
            pause_us: captured.timing.pause_us,
            dirty_pages,
            changed_pages: changes.len() as u64,
            new_pages: after.contents - before.contents,
            zero_pages,
            stored_bytes: after.stored_bytes - before.stored_bytes,
            keyframe_distance,
            keyframe_rows,
        };
        let prepared = Prepared { map: Arc::new(map), changes, replaced, state, keyframe, disks, checkpoint };
        *tip = Tip {
            map: Arc::clone(&prepared.map),
            is_first: false,
            keyframe_distance,
            keyframe_rows,
            disks: prepared.disk_baselines(),
        };
        Ok(prepared)
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

/// Adds the times between two instants of the content writer.
pub(super) fn note_times(timing: &mut CheckpointTiming, before: &Progress, after: &Progress) {
    let (before, after) = (before.timing, after.timing);
    timing.hash_us += after.hash_us - before.hash_us;
    timing.dedupe_us += after.dedupe_us - before.dedupe_us;
    timing.compress_us += after.compress_us - before.compress_us;
    timing.write_us += after.write_us - before.write_us;
    timing.sync_us += after.sync_us - before.sync_us;
}

/// Adds pages to the page cache.
fn cache_pages(store: &Store, contents: &[ContentRef], pages: &[&Page]) {
    store
        .cache
        .fill(contents.iter().zip(pages).filter_map(|(content, page)| Some((content.stored()?, *page))));
}
