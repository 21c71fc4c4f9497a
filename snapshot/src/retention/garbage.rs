use std::collections::{BTreeMap, HashSet};

use super::mark::{ContentSet, mark};
use super::merge::Tree;
use super::options::CompactOptions;
use super::plan::{PruneEstimate, PrunePlan};
use crate::catalogue::FrameRow;
use crate::content::ContentId;
use crate::error::{Error, Result};
use crate::id::CheckpointId;
use crate::store::Store;

/// Bytes of a row of `page_version` with its share of the tree around it, about.
const CHANGE_BYTES: u64 = 14;
/// Bytes of a checkpoint's rows in all other tables, about.
const CHECKPOINT_BYTES: u64 = 3000;

/// Bytes of the write-ahead log that the removal of a batch of checkpoints needs, about.
const LOG_BYTES: u64 = 8 << 20;

/// A frame, and which of its places hold live contents.
#[derive(Clone, Copy)]
pub(super) struct FrameUse {
    pub(super) row: FrameRow,
    /// A bit a place.
    pub(super) live: u32,
}

/// A pack, and its live contents.
#[derive(Default)]
pub(super) struct PackUse {
    pub(super) bytes: u64,
    pub(super) live_bytes: u64,
    /// Positions in the census's list of frames.
    pub(super) frames: Vec<usize>,
    /// The lowest and highest number of a content in it.
    pub(super) contents: Option<(ContentId, ContentId)>,
}

/// The live contents of all packs.
pub(super) struct Census {
    pub(super) frames: Vec<FrameUse>,
    pub(super) packs: BTreeMap<u32, PackUse>,
}

impl FrameUse {
    pub(super) fn live_pages(&self) -> u32 {
        self.live.count_ones()
    }

    /// The bytes of the frame that are needed, by the share of its pages that are live.
    fn live_bytes(&self) -> u64 {
        u64::from(self.row.stored_bytes) * u64::from(self.live_pages()) / u64::from(self.row.pages.max(1))
    }
}

impl PackUse {
    pub(super) fn garbage_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.live_bytes)
    }

    /// Whether at least `percent` of the pack is garbage.
    pub(super) fn is_worth_it(&self, percent: u64) -> bool {
        self.live_bytes == 0
            || self.garbage_bytes().saturating_mul(100) >= self.bytes.saturating_mul(percent.max(1))
    }
}

impl Census {
    /// Counts live contents: those in the catalogue for which `is_live` is true.
    pub(super) fn take(store: &Store, is_live: impl Fn(ContentId) -> bool) -> Result<Self> {
        let catalogue = store.catalogue();
        let mut packs: BTreeMap<u32, PackUse> = BTreeMap::new();
        for (number, bytes) in catalogue.packs()? {
            packs.entry(number).or_default().bytes = bytes;
        }
        let mut frames: Vec<FrameUse> =
            catalogue.frames()?.into_iter().map(|row| FrameUse { row, live: 0 }).collect();
        catalogue.each_content_row(|id, frame, slot| {
            if is_live(id)
                && let Ok(at) = frames.binary_search_by_key(&frame, |frame| frame.row.id)
            {
                frames[at].live |= 1_u32.checked_shl(slot).unwrap_or(0);
                let (_, last) =
                    packs.entry(frames[at].row.pack).or_default().contents.get_or_insert((id, id));
                *last = id;
            }
        })?;
        for (at, frame) in frames.iter().enumerate() {
            let pack = packs.entry(frame.row.pack).or_default();
            pack.live_bytes += frame.live_bytes();
            pack.frames.push(at);
        }
        Ok(Self { frames, packs })
    }
}

impl Store {
    /// What carrying out a plan would free.
    pub(super) fn estimate(&self, plan: &PrunePlan) -> Result<PruneEstimate> {
        let removed: HashSet<CheckpointId> = plan.removed().map(|removed| removed.id).collect();
        let tree = Tree::read(self)?;
        let orphans = tree.orphans(&removed);
        let lost = self.catalogue().marked()?;
        let mut live = ContentSet::default();
        for link in tree.links().filter(|link| !removed.contains(&link.checkpoint)) {
            self.mark_checkpoint(link, lost.contains(&link.checkpoint), &mut live)?;
        }
        let (mut rows_before, mut rows_after) = (0, 0);
        for orphan in &orphans {
            rows_before += self.catalogue().change_count(orphan.checkpoint.checkpoint)?;
            let merged = match orphan.changes(self) {
                Err(Error::Damaged(_)) if lost.contains(&orphan.checkpoint.checkpoint) => BTreeMap::new(),
                other => other?,
            };
            rows_after += merged.len() as u64;
            for content in merged.values() {
                mark(&mut live, *content);
            }
            for (disk, _) in self.catalogue().disks_at(orphan.checkpoint.checkpoint)? {
                let map = self.disk_map(orphan.checkpoint.checkpoint, &disk)?;
                map.iter().for_each(|(_, content)| mark(&mut live, content));
            }
        }
        for link in tree.links().filter(|link| removed.contains(&link.checkpoint)) {
            rows_before += self.catalogue().change_count(link.checkpoint)?;
        }
        let mut contents = 0;
        self.catalogue().each_content_row(|id, _, _| contents += u64::from(!live.contains(id)))?;
        let census = Census::take(self, |id| live.contains(id))?;
        let worth_it = CompactOptions::default().garbage_percent_min;
        let garbage = |only_worth_it: bool| {
            census
                .packs
                .values()
                .filter(|pack| !only_worth_it || pack.is_worth_it(worth_it))
                .map(PackUse::garbage_bytes)
                .sum()
        };
        Ok(PruneEstimate {
            checkpoints: removed.len() as u64,
            contents,
            garbage_bytes: garbage(false),
            pack_bytes: garbage(true),
            catalogue_bytes: rows_before.saturating_sub(rows_after) * CHANGE_BYTES
                + removed.len() as u64 * CHECKPOINT_BYTES,
            needed_bytes: census
                .packs
                .values()
                .filter(|pack| pack.is_worth_it(worth_it))
                .map(|pack| pack.live_bytes)
                .max()
                .unwrap_or(0)
                + LOG_BYTES,
        })
    }
}
